"""The two attentions of a transformer block, and their rotary positions.

Linear attention is Katharopoulos et al. 2020 with a ReLU feature map (as in Sana, arXiv 2410.10629); cross-attention
is the usual scaled dot product. Both rotate queries and keys (RoPE, arXiv 2104.09864). Tokens are packed (see
`packing`): N tokens of many rows, H heads of D dimensions.

`fold` rearranges the loaded weights for inference: one projection instead of three, and within each head the even
dimensions of queries and keys before the odd ones. Dot products do not change, and a rotation needs no interleaving.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from acestep_engine.devices import is_lost, is_out_of_memory
from acestep_engine.model.linear import Linear
from acestep_engine.model.low_rank import Adaptation, adapted
from acestep_engine.model.packing import KeyValue, Packing, Rotation, Segment, Span

LINEAR_ATTENTION_EPS = 1e-15
MAX_SCORES = 2**24  # 64 MB: more are not kept, even on a CPU
# First torch chooses among all kernels. cuDNN's, which it prefers on some GPUs, are made for one shape each, and refuse
# some shapes. The last are plain products.
KERNELS: tuple[Sequence[SDPBackend], ...] = (
    (),
    (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH),
    (SDPBackend.MATH,),
)

logger = logging.getLogger(__name__)


def rotary_angles(length: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions 0..length-1 in the folded order, each (length, head_dim), float32.

    The published model lays the frequencies out in two halves but rotates neighbouring pairs; trained weights rely on
    it. The sine is negative where the even dimension of a pair takes from the odd one.
    """
    frequencies = theta ** -(torch.arange(0, head_dim, 2, device=device).float() / head_dim)  # (D / 2,)
    angles = torch.outer(torch.arange(length, device=device).float(), frequencies)  # (T, D / 2)
    angles = torch.cat([angles, angles], dim=-1)[:, even_then_odd(head_dim)]  # (T, D)
    sign = torch.ones(head_dim, device=device)
    sign[: head_dim // 2] = -1
    return angles.cos(), angles.sin() * sign


def even_then_odd(head_dim: int) -> Tensor:
    """The folded order of a head's dimensions."""
    return torch.cat([torch.arange(0, head_dim, 2), torch.arange(1, head_dim, 2)])


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate (N, H, D) in the folded order. Computed and answered in float32."""
    cos, sin = rotation  # (N, 1, D)
    even, odd = x.float().chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat([odd, even], dim=-1), sin)


def folded_rows(linear: Linear, heads: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of a projection to queries or keys, with each head's dimensions in the folded order."""
    order = folded_order(heads, linear.out_features // heads).to(linear.weight.device)
    return linear.weight[order], linear.bias[order]


def folded_order(heads: int, head_dim: int) -> Tensor:
    """The folded order of the outputs of a projection to queries or keys."""
    return (torch.arange(heads)[:, None] * head_dim + even_then_odd(head_dim)).flatten()


@dataclass(frozen=True)
class Folded:
    """Where `fold` leaves a loaded projection: which of the equal parts of another one, in the folded order or not."""

    name: str
    part: int
    reordered: bool


def stacked(parts: list[tuple[Tensor, Tensor]]) -> Linear:
    """Several projections of the same input as one."""
    weight, bias = torch.cat([weight for weight, _ in parts]), torch.cat([bias for _, bias in parts])
    with torch.device("meta"):
        linear = Linear(weight.shape[1], weight.shape[0])
    linear.weight, linear.bias = nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False)
    return linear


class LinearAttention(nn.Module):
    """Self-attention whose cost grows with T, not T squared."""

    FOLDED: ClassVar[Mapping[str, Folded]] = {
        "to_q": Folded("to_qkv", 0, reordered=True),
        "to_k": Folded("to_qkv", 1, reordered=True),
        "to_v": Folded("to_qkv", 2, reordered=False),
    }

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.to_q = Linear(dim, inner)
        self.to_k = Linear(dim, inner)
        self.to_v = Linear(dim, inner)
        self.to_out = nn.ModuleList([Linear(inner, dim)])  # a list, as the published names have it

    def fold(self) -> None:
        q, k = folded_rows(self.to_q, self.heads), folded_rows(self.to_k, self.heads)
        self.to_qkv = stacked([q, k, (self.to_v.weight, self.to_v.bias)])
        del self.to_q, self.to_k, self.to_v

    def project(
        self, x: Tensor, rotation: Rotation, adaptation: Adaptation | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (N, H, D), float32: the sums of attention run over the whole song."""
        qkv = adapted(self.to_qkv(x), x, adaptation, "to_qkv").unflatten(-1, (3 * self.heads, -1))  # (N, 3 * H, D)
        qk, v = qkv[:, : 2 * self.heads], qkv[:, 2 * self.heads :]
        q, k = F.relu(rotate(qk, rotation).to(x.dtype)).float().chunk(2, dim=1)
        return q, k, v.float()

    def attend(self, q: Tensor, k: Tensor, v: Tensor, packing: Packing, dtype: torch.dtype) -> Tensor:
        """(N, H * D); every row attends to itself."""
        for x in (k, v):  # a gap has neither weight nor value, even where a neighbour's NaN has reached it
            x.index_fill_(0, packing.gaps, 0.0)
        out = q.new_empty(packing.tokens, q.shape[1] * q.shape[2], dtype=dtype)
        for span in packing.spans:
            out[span.start : span.stop].view(span.rows, span.width, *q.shape[1:]).copy_(_attend_rows(q, k, v, span))
        return out


def _attend_rows(q: Tensor, k: Tensor, v: Tensor, span: Span) -> Tensor:
    """Rows (R, W, H, D) of equal width."""
    q, k, v = (
        x[span.start : span.stop].unflatten(0, (span.rows, span.width)).transpose(1, 2)  # (R, H, W, D)
        for x in (q, k, v)
    )
    summary = k.transpose(-1, -2) @ v  # (R, H, D, D)
    weight = q @ k.sum(dim=2).unsqueeze(-1)  # (R, H, W, 1)
    return ((q @ summary) / weight.add_(LINEAR_ATTENTION_EPS)).transpose(1, 2)


class DotProducts:
    """Scaled dot product attention by torch's fused kernels, and by slower ones once those have failed."""

    def __init__(self) -> None:
        self._kernels = list(KERNELS)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the attended values (R, H, W, D) of queries (R, H, W, D), keys and values (R, H, C, D)."""
        while True:
            try:
                return self._attend(q, k, v)
            except RuntimeError as error:
                if len(self._kernels) == 1 or is_out_of_memory(error) or is_lost(error, q.device):
                    raise
                failure = error.with_traceback(None)
            del self._kernels[0]
            names = ", ".join(kernel.name for kernel in self._kernels[0])
            logger.warning("attention failed, and is left to %s from now on: %s", names, failure)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not self._kernels[0]:
            return F.scaled_dot_product_attention(q, k, v)
        with sdpa_kernel([*self._kernels[0]]):
            return F.scaled_dot_product_attention(q, k, v)


class CrossAttention(nn.Module):
    """Attention of latent frames to the context: speaker, prompt, lyrics.

    The blocks of a model share `dot_products`.
    """

    FOLDED: ClassVar[Mapping[str, Folded]] = {
        "to_q": Folded("to_q", 0, reordered=True),
        "to_k": Folded("to_kv", 0, reordered=True),
        "to_v": Folded("to_kv", 1, reordered=False),
    }

    def __init__(self, dim: int, heads: int, head_dim: int, dot_products: DotProducts) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.to_q = Linear(dim, inner)
        self.to_k = Linear(dim, inner)
        self.to_v = Linear(dim, inner)
        self.to_out = nn.ModuleList([Linear(inner, dim)])
        self._dot_products = dot_products

    def fold(self) -> None:
        self.to_kv = stacked([folded_rows(self.to_k, self.heads), (self.to_v.weight, self.to_v.bias)])
        self.to_q = stacked([folded_rows(self.to_q, self.heads)])
        del self.to_k, self.to_v

    def project_context(self, hidden: Tensor, rotation: Rotation, adaptation: Adaptation | None = None) -> KeyValue:
        """Keys and values (R, H, C, D) of a context (R, C, dim). They do not change over the steps of a request."""
        kv = adapted(self.to_kv(hidden), hidden, adaptation, "to_kv").unflatten(-1, (2 * self.heads, -1))
        k, v = kv.chunk(2, dim=2)  # (R, C, H, D) each
        rotated = rotate(k, rotation).to(k.dtype)
        return rotated.transpose(1, 2).contiguous(), v.transpose(1, 2).contiguous()

    def project(
        self, x: Tensor, rotation: Rotation, query_scale: Tensor | None, adaptation: Adaptation | None = None
    ) -> Tensor:
        """Queries (N, H, D) in x's dtype. `query_scale` (N, 1) weakens the attention of single rows."""
        q = adapted(self.to_q(x), x, adaptation, "to_q")
        if query_scale is not None:
            q = q * query_scale
        return rotate(q.unflatten(-1, (self.heads, -1)), rotation).to(x.dtype)

    def attend(self, q: Tensor, packing: Packing, block: int) -> Tensor:
        """(N, H * D); every request attends to its own context."""
        out = q.new_empty(packing.tokens, q.shape[1] * q.shape[2])
        for segment in packing.segments:
            rows = out[segment.start : segment.stop].view(segment.rows, segment.width, *q.shape[1:])
            rows.copy_(self._attend_context(q, segment, block))
        return out

    def _attend_context(self, q: Tensor, segment: Segment, block: int) -> Tensor:
        """(R, W, H, D) of one request."""
        own = q[segment.start : segment.stop]
        rows = own.unflatten(0, (segment.rows, segment.width)).transpose(1, 2)  # (R, H, W, D)
        k, v = segment.key_value(block)
        scores = segment.rows * k.shape[1] * segment.width * k.shape[2]
        if q.device.type != "cpu" or scores > MAX_SCORES:
            return self._dot_products(rows, k, v).transpose(1, 2)
        # On a CPU, for contexts of a few hundred tokens, plain products are 1.1 to 1.7 times as fast as fused kernels.
        weights = torch.baddbmm(
            q.new_empty(1), rows.flatten(0, 1), k.flatten(0, 1).mT, beta=0, alpha=k.shape[-1] ** -0.5
        ).softmax(dim=-1)  # (R * H, W, C)
        return (weights @ v.flatten(0, 1)).unflatten(0, (segment.rows, -1)).transpose(1, 2)
