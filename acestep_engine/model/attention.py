"""The two attentions of a transformer block, and their rotary positions.

Linear attention is Katharopoulos et al. 2020 with a ReLU feature map (as in Sana, arXiv 2410.10629); cross-attention
is the usual scaled dot product. Both rotate queries and keys (RoPE, arXiv 2104.09864).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LINEAR_ATTENTION_EPS = 1e-15

Rotation = tuple[Tensor, Tensor]  # cosines and sines, each (T, D), float32
KeyValue = tuple[Tensor, Tensor]  # keys (rotated) and values, each (B, H, C, D)


def rotary_angles(length: int, head_dim: int, theta: float, device: torch.device) -> Rotation:
    """Cosines and sines of positions 0..length-1, each (length, head_dim), float32.

    The published model lays the frequencies out in two halves but rotates neighbouring pairs; trained weights rely on
    it.
    """
    frequencies = theta ** -(torch.arange(0, head_dim, 2, device=device).float() / head_dim)  # (D / 2,)
    angles = torch.outer(torch.arange(length, device=device).float(), frequencies)  # (T, D / 2)
    angles = torch.cat([angles, angles], dim=-1)  # (T, D)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Apply `rotation` to (..., T, D), pairing dimensions 2i and 2i + 1. Computed in float32, answered in x's dtype."""
    cos, sin = rotation
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # (..., T, D / 2) each
    turned = torch.stack([-odd, even], dim=-1).flatten(-2)  # (..., T, D)
    return (x * cos + turned * sin).to(x.dtype)


class LinearAttention(nn.Module):
    """Self-attention whose cost grows with T, not T squared."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.to_q = nn.Linear(dim, inner)
        self.to_k = nn.Linear(dim, inner)
        self.to_v = nn.Linear(dim, inner)
        self.to_out = nn.ModuleList([nn.Linear(inner, dim)])  # a list, as the published names have it

    def forward(self, x: Tensor, rotation: Rotation, mask: Tensor | None = None) -> Tensor:
        """(B, T, dim) to the same shape. `mask` (B, T) is true where a frame belongs to the song."""
        q = self.to_q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, T, D)
        k = self.to_k(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        v = self.to_v(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        # float32: the sums below run over the whole song
        q = F.relu(rotate(q, rotation)).float()
        k = F.relu(rotate(k, rotation)).float()
        v = v.float()
        if mask is not None:
            k = k * mask[:, None, :, None]  # a padded frame has neither weight nor value
        summary = k.transpose(-1, -2) @ v  # (B, H, D, D)
        weight = q @ k.sum(dim=2).unsqueeze(-1)  # (B, H, T, 1)
        out = (q @ summary) / (weight + LINEAR_ATTENTION_EPS)
        out = out.transpose(1, 2).flatten(2).to(x.dtype)  # (B, T, H * D)
        return self.to_out[0](out)


class CrossAttention(nn.Module):
    """Attention of latent frames to the context: speaker, prompt, lyrics."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.to_q = nn.Linear(dim, inner)
        self.to_k = nn.Linear(dim, inner)
        self.to_v = nn.Linear(dim, inner)
        self.to_out = nn.ModuleList([nn.Linear(inner, dim)])

    def project_context(self, context: Tensor, rotation: Rotation) -> KeyValue:
        """Keys and values of a context (B, C, dim). They do not change over the steps of a request."""
        k = self.to_k(context).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, C, D)
        v = self.to_v(context).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return rotate(k, rotation), v

    def forward(
        self,
        x: Tensor,
        context: KeyValue,
        rotation: Rotation,
        context_mask: Tensor | None = None,
        query_scale: Tensor | None = None,
    ) -> Tensor:
        """(B, T, dim) to the same shape.

        `context_mask` (B, C) is true where the context may be attended to. `query_scale` (B,) weakens the attention of
        single rows: entropy-rectifying guidance.
        """
        q = self.to_q(x)
        if query_scale is not None:
            q = q * query_scale[:, None, None]
        q = rotate(q.unflatten(-1, (self.heads, -1)).transpose(1, 2), rotation)  # (B, H, T, D)
        k, v = context
        mask = None if context_mask is None else context_mask[:, None, None, :]  # (B, 1, 1, C)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.to_out[0](out.transpose(1, 2).flatten(2))
