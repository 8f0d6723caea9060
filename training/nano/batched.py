"""Parts of the engine's transformer in the form that is trained: the same weights, the same figures, for songs of one
length, with nothing in place. A step of training takes about three quarters of what the packed form takes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acestep_engine.model.attention import LINEAR_ATTENTION_EPS, rotate
from acestep_engine.model.linear import project
from acestep_engine.model.packing import Packing, Rotation
from acestep_engine.model.patch import EPS, GROUPS, PatchEmbedding
from acestep_engine.model.transformer import GatedConvFeedForward, TransformerBlock, pointwise, rms_norm

COMPILED_METHODS = ("project", "expand", "contract")  # of a block


class OpenPatchEmbedding(nn.Module):
    """The patch embedding before it is folded to statistics: gradients for its convolutions."""

    def __init__(self, patch: PatchEmbedding) -> None:
        super().__init__()
        self.early_conv_layers = patch.early_conv_layers

    def forward(self, songs: Sequence[Tensor]) -> list[Tensor]:
        """Songs (channels, height, T), all of one T, to their tokens (T, dim)."""
        return list(self.embed(torch.stack(list(songs)).flatten(1, 2).mT).unbind(0))

    def embed(self, columns: Tensor) -> Tensor:
        """Columns of latents (S, T, channels * height) to tokens (S, T, dim)."""
        expand, norm, contract = self.early_conv_layers
        assert isinstance(expand, nn.Conv2d)
        assert isinstance(contract, nn.Conv2d)
        hidden = project(columns, expand.weight.flatten(1), expand.bias).float().unflatten(-1, (GROUPS, -1))
        variance, mean = torch.var_mean(hidden, dim=(1, 3), correction=0, keepdim=True)  # of a group over a song
        normed = ((hidden - mean) * (variance + EPS).rsqrt()).flatten(2)
        return project(normed * norm.weight + norm.bias, contract.weight.flatten(1), contract.bias)


class OpenBlock(nn.Module):
    """A transformer block over songs of one length, R of them, each W tokens with the gap that ends it."""

    def __init__(self, block: TransformerBlock) -> None:
        super().__init__()
        self.attn, self.cross_attn, self.ff = block.attn, block.cross_attn, block.ff
        self.scale_shift_table = block.scale_shift_table
        self.heads = block.attn.heads

    def forward(self, x: Tensor, modulation: Tensor, packing: Packing, index: int) -> Tensor:
        """(N, dim) to the same shape; `modulation` (R, 6, dim). This is block `index`."""
        (segment,) = packing.segments
        cos, sin = packing.rotation
        rotation = cos[: segment.width, 0], sin[: segment.width, 0]  # (W, D)
        real = torch.ones(segment.width, 1, device=x.device)
        real[-1] = 0.0
        x, q = self.project(x.unflatten(0, (segment.rows, segment.width)), modulation, rotation, real)
        k, v = segment.key_value(index)  # (R, H, C, D)
        scores = q @ k.mT * k.shape[-1] ** -0.5  # (R, H, W, C)
        attended = (scores.softmax(dim=-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)  # (R, W, H * D)
        x, hidden = self.expand(x, attended, modulation, real)
        return self.contract(x, depthwise(hidden, self.ff), modulation).flatten(0, 1)

    def project(self, x: Tensor, modulation: Tensor, rotation: Rotation, real: Tensor) -> tuple[Tensor, Tensor]:
        """The residual after self-attention (R, W, dim), and queries (R, H, W, D) of cross-attention."""
        shift, scale, gate, _, _, _ = (part.unsqueeze(1) for part in modulation.unbind(1))
        qkv = self.attn.to_qkv(torch.addcmul(shift, rms_norm(x), scale)).unflatten(-1, (3, self.heads, -1))
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # (R, H, W, D)
        q, k, v = F.relu(rotate(q, rotation)), F.relu(rotate(k, rotation)) * real, v.float() * real
        with torch.autocast(x.device.type, enabled=False):  # sums over a whole song lose too much in bfloat16
            attended = q @ (k.mT @ v) / (q @ k.sum(dim=2).unsqueeze(-1) + LINEAR_ATTENTION_EPS)
        attended = attended.to(qkv.dtype).transpose(1, 2).flatten(2)
        x = torch.addcmul(x, gate, self.attn.to_out[0](attended))
        q = self.cross_attn.to_q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return x, rotate(q, rotation).to(q.dtype).contiguous()

    def expand(self, x: Tensor, attended: Tensor, modulation: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """The residual after cross-attention (R, W, dim), and what the depthwise convolution mixes, zero in gaps."""
        _, _, _, shift, scale, _ = (part.unsqueeze(1) for part in modulation.unbind(1))
        x = x + self.cross_attn.to_out[0](attended)
        hidden = F.silu(pointwise(self.ff.inverted_conv.conv, torch.addcmul(shift, rms_norm(x), scale)))
        return x, hidden * real.to(hidden.dtype)

    def contract(self, x: Tensor, mixed: Tensor, modulation: Tensor) -> Tensor:
        """The residual after the feed-forward (R, W, dim)."""
        value, gate = mixed.chunk(2, dim=-1)
        return torch.addcmul(x, modulation[:, 5].unsqueeze(1), pointwise(self.ff.point_conv.conv, value * F.silu(gate)))


def depthwise(hidden: Tensor, feed_forward: GatedConvFeedForward) -> Tensor:
    """The folded depthwise convolution over (R, W, C): as an image of one row, for which there are fast kernels."""
    image = hidden.flatten(0, 1)[None, None].permute(0, 3, 1, 2)  # (1, C, 1, R * W), channels last
    weight, bias = feed_forward.taps.T[:, None, None], feed_forward.taps_bias
    mixed = F.conv2d(image, weight.to(image.dtype), bias.to(image.dtype), padding=(0, 1), groups=image.shape[1])
    return mixed.permute(0, 2, 3, 1).view_as(hidden)
