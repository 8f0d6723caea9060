"""The lyric encoder: a transformer encoder with relative positions (Transformer-XL, arXiv 1901.02860, section 3.3)."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acestep_engine.model.linear import Linear
from acestep_engine.model.low_rank import Adaptation, adapted, within


@dataclass(frozen=True)
class LyricEncoderConfig:
    """Sizes. The defaults are those of ACE-Step v1, whose config.json does not name them."""

    dim: int = 1024
    heads: int = 16
    ff_dim: int = 4096
    layers: int = 6


# Layers whose queries entropy-rectifying guidance weakens, as published.
ERG_LAYERS = range(4, 6)


QUERY_CHUNK = 512  # queries that attend at a time: memory then grows with the length of the lyrics, not its square


def relative_positions(length: int, dim: int, device: torch.device) -> Tensor:
    """Sinusoids of the relative positions length-1 down to 1-length: (2 * length - 1, dim), float32."""
    position = torch.arange(length - 1, -length, -1, device=device).float().unsqueeze(1)
    frequency = torch.exp(torch.arange(0, dim, 2, device=device).float() * -(math.log(10_000.0) / dim))
    angles = position * frequency  # (2 * T - 1, dim / 2)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)  # sines at even, cosines at odd places


class RelativeSelfAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear_q = Linear(dim, dim)
        self.linear_k = Linear(dim, dim)
        self.linear_v = Linear(dim, dim)
        self.linear_out = Linear(dim, dim)
        self.linear_pos = Linear(dim, dim, bias=False)
        self.pos_bias_u = nn.Parameter(torch.empty(heads, dim // heads))
        self.pos_bias_v = nn.Parameter(torch.empty(heads, dim // heads))

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        query_scale: Tensor | None,
        adaptation: Adaptation | None,
    ) -> Tensor:
        """(B, T, dim) to the same shape. `positions` (2T - 1, dim), `mask` (B, 1, 1, T) true at real tokens."""
        batch, length, _ = x.shape
        q = adapted(self.linear_q(x), x, adaptation, "linear_q")
        if query_scale is not None:
            q = q * query_scale[:, None, None]
        q = q.unflatten(-1, (self.heads, -1))  # (B, T, H, D)
        k = adapted(self.linear_k(x), x, adaptation, "linear_k").unflatten(-1, (self.heads, -1)).transpose(1, 2)
        v = adapted(self.linear_v(x), x, adaptation, "linear_v").unflatten(-1, (self.heads, -1)).transpose(1, 2)
        p = adapted(self.linear_pos(positions), positions, adaptation, "linear_pos")  # (2 * T - 1, dim)
        p = p.unflatten(-1, (self.heads, -1)).transpose(0, 1)  # (H, 2 * T - 1, D)

        to_content = (q + self.pos_bias_u).transpose(1, 2)  # (B, H, T, D)
        to_distance = (q + self.pos_bias_v).transpose(1, 2)
        attended = []
        for start in range(0, length, QUERY_CHUNK):
            chunk = slice(start, start + QUERY_CHUNK)
            by_content = to_content[:, :, chunk] @ k.transpose(-1, -2)  # (B, H, chunk, T)
            by_distance = (to_distance[:, :, chunk] @ p.transpose(-1, -2)).contiguous()  # (B, H, chunk, 2 * T - 1)
            # Column T - 1 - i + j of query i is its distance to key j: a view with rows one element shorter.
            rows, row = by_distance.shape[2:]
            by_distance = by_distance.as_strided(
                (batch, self.heads, rows, length),
                (self.heads * rows * row, rows * row, row - 1, 1),
                length - 1 - start,
            )
            scores = (by_content + by_distance) / math.sqrt(q.shape[-1])
            if mask is not None:
                scores = scores.masked_fill(~mask, -torch.inf)
            weights = scores.softmax(dim=-1)
            if mask is not None:
                weights = weights.masked_fill(~mask, 0.0)  # a row without any real token would be NaN
            attended.append(weights @ v)
        x = torch.cat(attended, dim=2).transpose(1, 2).flatten(2)  # (B, T, dim)
        return adapted(self.linear_out(x), x, adaptation, "linear_out")


class FeedForward(nn.Module):
    def __init__(self, dim: int, ff_dim: int) -> None:
        super().__init__()
        self.w_1 = Linear(dim, ff_dim)
        self.w_2 = Linear(ff_dim, dim)

    def forward(self, x: Tensor, adaptation: Adaptation | None) -> Tensor:
        hidden = F.silu(adapted(self.w_1(x), x, adaptation, "w_1"))
        return adapted(self.w_2(hidden), hidden, adaptation, "w_2")


class LyricEncoderLayer(nn.Module):
    def __init__(self, config: LyricEncoderConfig) -> None:
        super().__init__()
        self.self_attn = RelativeSelfAttention(config.dim, config.heads)
        self.feed_forward = FeedForward(config.dim, config.ff_dim)
        self.norm_mha = nn.LayerNorm(config.dim)
        self.norm_ff = nn.LayerNorm(config.dim)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        query_scale: Tensor | None,
        adaptation: Adaptation | None,
    ) -> Tensor:
        x = x + self.self_attn(self.norm_mha(x), positions, mask, query_scale, within(adaptation, "self_attn"))
        return x + self.feed_forward(self.norm_ff(x), within(adaptation, "feed_forward"))


class InputProjection(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out = nn.Sequential(Linear(dim, dim), nn.LayerNorm(dim))

    def forward(self, x: Tensor, adaptation: Adaptation | None) -> Tensor:
        linear, norm = self.out
        return norm(adapted(linear(x), x, adaptation, "out.0")) * math.sqrt(x.shape[-1])


class LyricEncoder(nn.Module):
    def __init__(self, config: LyricEncoderConfig) -> None:
        super().__init__()
        self.embed = InputProjection(config.dim)
        self.encoders = nn.ModuleList(LyricEncoderLayer(config) for _ in range(config.layers))
        self.after_norm = nn.LayerNorm(config.dim)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        query_scale: Tensor | None = None,
        adaptation: Adaptation | None = None,
    ) -> Tensor:
        """Token embeddings (B, T, dim) to hidden states (B, T, dim).

        `mask` (B, T) is true at real tokens; `query_scale` (B,) weakens the attention of the layers in `ERG_LAYERS`.
        """
        positions = relative_positions(x.shape[1], x.shape[2], x.device).to(x.dtype)
        key_mask = None if mask is None else mask[:, None, None, :]  # (B, 1, 1, T)
        x = self.embed(x, within(adaptation, "embed"))
        for i, layer in enumerate(self.encoders):
            scale = query_scale if i in ERG_LAYERS else None
            x = layer(x, positions, key_mask, scale, within(adaptation, f"encoders.{i}"))
        return self.after_norm(x)
