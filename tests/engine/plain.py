"""The published transformer written down plainly, in double precision: one song, one row, nothing folded or packed."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acestep_engine.model.attention import CrossAttention, LinearAttention
from acestep_engine.model.config import TIMESTEP_CHANNELS
from acestep_engine.model.patch import PatchEmbedding
from acestep_engine.model.transformer import (
    ERG_BLOCKS,
    NORM_EPS,
    GatedConvFeedForward,
    Transformer,
    TransformerBlock,
)

THETA = 1_000_000.0
EPS = 1e-15


class PlainTransformer:
    """`loaded` has its weights as the checkpoint does: it is not folded."""

    def __init__(self, loaded: Transformer) -> None:
        self.model = loaded.double()

    def velocity(self, latents: Tensor, timestep: float, hidden: Tensor, real: Tensor, query_scale: float) -> Tensor:
        """Of latents (8, 16, T) that attend to those of the context (C, dim) that are `real` (C,): (8, 16, T)."""
        model = self.model
        embedded = embed_timestep(model, timestep)  # (dim,)
        shared = apply(model.t_block[1], F.silu(embedded)).unflatten(0, (6, -1))  # (6, dim)
        x = embed_patches(model.proj_in, latents)  # (T, dim)
        for index, block in enumerate(model.transformer_blocks):
            scale = query_scale if index in ERG_BLOCKS else 1.0
            x = run_block(block, x, block.scale_shift_table + shared, hidden.double(), real, scale)
        shift, scale = model.final_layer.scale_shift_table + embedded
        x = apply(model.final_layer.linear, rms_norm(x) * (1 + scale) + shift)  # (T, height * channels)
        return x.unflatten(1, (model.config.latent_height, model.config.out_channels)).permute(2, 1, 0)


def apply(linear: nn.Module, x: Tensor) -> Tensor:
    return F.linear(x, linear.weight, linear.bias)


def rms_norm(x: Tensor) -> Tensor:
    return x / (x.square().mean(dim=-1, keepdim=True) + NORM_EPS).sqrt()


def embed_timestep(model: Transformer, timestep: float) -> Tensor:
    half = TIMESTEP_CHANNELS // 2
    frequencies = torch.exp(-math.log(10_000.0) * torch.arange(half).float() / half)
    angles = (timestep * frequencies).double()  # float32 up to here, as published
    hidden = F.silu(apply(model.timestep_embedder.linear_1, torch.cat([angles.cos(), angles.sin()])))
    return apply(model.timestep_embedder.linear_2, hidden)


def embed_patches(patch: PatchEmbedding, latents: Tensor) -> Tensor:
    """(T, dim): a convolution over whole columns, a group norm over the song, a pointwise convolution."""
    return patch.early_conv_layers(latents.double()[None])[0, :, 0].T


def run_block(
    block: TransformerBlock, x: Tensor, modulation: Tensor, hidden: Tensor, real: Tensor, query_scale: float
) -> Tensor:
    shift, scale, gate, shift_ff, scale_ff, gate_ff = modulation
    x = x + gate * attend_linearly(block.attn, rms_norm(x) * (1 + scale) + shift)
    x = x + attend_across(block.cross_attn, x, hidden, real, query_scale)
    return x + gate_ff * feed_forward(block.ff, rms_norm(x) * (1 + scale_ff) + shift_ff)


def rotate(x: Tensor) -> Tensor:
    """Rotary positions of (T, H, D): neighbouring dimensions are a pair, but their frequencies lie in two halves."""
    length, _, head_dim = x.shape
    turned = torch.empty_like(x)
    for dim in range(head_dim):
        frequency = THETA ** -(2 * (dim % (head_dim // 2)) / head_dim)
        angle = (torch.arange(length).float()[:, None] * frequency).double()  # float32 up to here, as published
        partner = -x[..., dim + 1] if dim % 2 == 0 else x[..., dim - 1]
        turned[..., dim] = x[..., dim] * angle.cos() + partner * angle.sin()
    return turned


def attend_linearly(attention: LinearAttention, x: Tensor) -> Tensor:
    q, k, v = (
        apply(part, x).unflatten(1, (attention.heads, -1)) for part in (attention.to_q, attention.to_k, attention.to_v)
    )
    q, k = rotate(q).relu(), rotate(k).relu()
    scores = torch.einsum("thd,shd->hts", q, k)
    attended = torch.einsum("hts,shd->thd", scores, v) / (scores.sum(dim=-1).T[..., None] + EPS)
    return apply(attention.to_out[0], attended.flatten(1))


def attend_across(attention: CrossAttention, x: Tensor, hidden: Tensor, real: Tensor, query_scale: float) -> Tensor:
    q = rotate((apply(attention.to_q, x) * query_scale).unflatten(1, (attention.heads, -1)))
    k = rotate(apply(attention.to_k, hidden).unflatten(1, (attention.heads, -1)))
    v = apply(attention.to_v, hidden).unflatten(1, (attention.heads, -1))
    scores = torch.einsum("thd,shd->hts", q, k) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~real, -torch.inf).softmax(dim=-1)
    return apply(attention.to_out[0], torch.einsum("hts,shd->thd", weights, v).flatten(1))


def feed_forward(ff: GatedConvFeedForward, x: Tensor) -> Tensor:
    """Three convolutions of one row (T, dim), as torch runs them."""
    expanded = F.silu(ff.inverted_conv.conv(x.T[None]))  # (1, 2 * hidden, T)
    value, gate = ff.depth_conv.conv(expanded).chunk(2, dim=1)
    return ff.point_conv.conv(value * F.silu(gate))[0].T
