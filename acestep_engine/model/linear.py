"""Matrix products with a weight, on the fastest kernels that torch brings for the device."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ONEDNN = torch.backends.mkldnn.is_available()
SMALL_PRODUCT = 2**21  # multiplications; below it oneDNN's preparations take longer than the product


def project(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` of (N, in) or more dimensions.

    In float32 on a CPU by oneDNN, which torch takes for convolutions but not here: it uses AVX-512 on every vendor's
    processors, where the product that `F.linear` calls may run at half its speed.
    """
    plain = not ONEDNN or x.device.type != "cpu" or x.dtype != torch.float32 or torch.compiler.is_compiling()
    learning = torch.is_grad_enabled() and weight.requires_grad  # the product below has no gradient
    if plain or learning or x.numel() * weight.shape[0] < SMALL_PRODUCT:
        return F.linear(x, weight, bias)
    # Private, but what torch's own compiler emits for a linear layer; the torch version is pinned.
    product: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return product


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return project(x, self.weight, self.bias)
