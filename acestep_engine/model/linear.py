"""Matrix products with a weight, on the fastest kernels that torch brings for the device."""

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ONEDNN = torch.backends.mkldnn.is_available()
SMALL_PRODUCT = 2**21  # multiplications; below it oneDNN's preparations take longer than the product
# Rows from which on a CPU's products compute a row alike, whichever rows are beside it and however many threads there
# are. For fewer rows they choose kernels that sum in another order.
LEAST_ROWS = 96


def project(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` of (N, in) or more dimensions.

    In float32 on a CPU by oneDNN, which torch takes for convolutions but not here: it uses AVX-512 on every vendor's
    processors, where the product that `F.linear` calls may run at half its speed. There a row's outputs are the same
    to the bit, whatever other rows there are: requests that share a forward do not change each other's song.
    """
    learning = torch.is_grad_enabled() and weight.requires_grad  # the product below has no gradient
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.compiler.is_compiling() or learning:
        return F.linear(x, weight, bias)
    rows = x.numel() // weight.shape[1]
    if 1 < rows < LEAST_ROWS:
        padded = F.pad(x.reshape(rows, -1), (0, 0, 0, LEAST_ROWS - rows))
        return _product(padded, weight, bias)[:rows].unflatten(0, x.shape[:-1])
    return _product(x, weight, bias)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = min(LEAST_ROWS, x.numel() // weight.shape[1])
    if not ONEDNN or rows * weight.numel() < SMALL_PRODUCT:
        return F.linear(x, weight, bias)
    # Private, but what torch's own compiler emits for a linear layer; the torch version is pinned.
    product: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return product


class PointwiseConv2d(nn.Conv2d):
    """A convolution that sees one pixel at a time, on (B, C, H, W), computed as a product with its weight.

    Torch's own sums in an order that depends on the number of threads.
    """

    @classmethod
    def like(cls, conv: nn.Conv2d) -> Self:
        """Return one with the weights of `conv`, themselves."""
        with torch.device("meta"):
            made = cls(conv.in_channels, conv.out_channels, 1, bias=conv.bias is not None)
        made.weight, made.bias = conv.weight, conv.bias
        return made

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        return project(x.movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)


class PointwiseConv1d(nn.Conv1d):
    """The same on (B, C, T)."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        return project(x.movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)


def use_products(module: nn.Module) -> None:
    """Replace the pointwise convolutions within `module`, which is loaded, by PointwiseConv2d."""
    for name, child in module.named_children():
        if type(child) is nn.Conv2d and child.kernel_size == (1, 1) and child.stride == (1, 1) and child.groups == 1:
            setattr(module, name, PointwiseConv2d.like(child))
        else:
            use_products(child)


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return project(x, self.weight, self.bias)
