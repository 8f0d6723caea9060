"""The ACE-Step v1 diffusion transformer (arXiv 2506.00045): latents, a timestep and a context to a velocity."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acestep_engine.errors import CheckpointError
from acestep_engine.model.attention import CrossAttention, KeyValue, LinearAttention, Rotation, rotary_angles
from acestep_engine.model.loading import load_weights, read_config
from acestep_engine.model.lyric_encoder import LyricEncoder, LyricEncoderConfig

# Blocks whose cross-attention queries entropy-rectifying guidance weakens, as published. The published code weakens the
# self-attention's queries too, which changes nothing: ReLU linear attention divides by the same factor.
ERG_BLOCKS = range(15, 20)

NORM_EPS = 1e-6
TIMESTEP_CHANNELS = 256
GROUP_NORM_GROUPS = 32


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes, as in `ace_step_transformer/config.json`. Published configs leave the lyric encoder's out."""

    num_layers: int
    num_attention_heads: int
    attention_head_dim: int
    mlp_ratio: float
    text_embedding_dim: int
    in_channels: int = 8
    out_channels: int = 8
    latent_height: int = 16
    speaker_embedding_dim: int = 512
    rope_theta: float = 1_000_000.0
    lyric_encoder_vocab_size: int = 6693
    lyric_hidden_size: int = 1024
    lyric_encoder_heads: int = 16
    lyric_encoder_ff_dim: int = 4096
    lyric_encoder_layers: int = 6

    @property
    def dim(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def patch_channels(self) -> int:
        """Channels between the two convolutions of the patch embedding."""
        return self.in_channels * 256

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Self:
        """Raises CheckpointError for a missing size or a patch other than one column of latents."""
        if list(config.get("patch_size", [16, 1])) != [config.get("max_height", 16), 1]:
            raise CheckpointError(f"patch_size {config['patch_size']} is not one whole column of latents")
        fields = {k: v for k, v in config.items() if k in cls.__dataclass_fields__}
        fields["latent_height"] = config.get("max_height", 16)
        try:
            return cls(**fields)
        except TypeError as error:
            raise CheckpointError(f"ace_step_transformer/config.json lacks a size: {error}") from None


def unused_in_generation(name: str) -> bool:
    """Tensors of a published checkpoint that only its training used: a fifth of all parameters."""
    return name.startswith("projectors.") or ".cross_attn.add_" in name or ".cross_attn.to_add_out." in name


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


class Conv(nn.Module):
    """A convolution under the name the checkpoint gives it: `<name>.conv.weight`."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel_size: int, groups: int = 1, bias: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(
            channels_in, channels_out, kernel_size, padding=kernel_size // 2, groups=groups, bias=bias
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class GatedConvFeedForward(nn.Module):
    """Mix-FFN of Sana: expand, a depthwise convolution over time, gate, contract."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.inverted_conv = Conv(dim, 2 * hidden, 1)
        self.depth_conv = Conv(2 * hidden, 2 * hidden, 3, groups=2 * hidden)
        self.point_conv = Conv(hidden, dim, 1, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, dim) to the same shape. Padded frames are zeroed before the convolution, which would spread them."""
        x = F.silu(pointwise(self.inverted_conv.conv, x))  # (B, T, 2 * hidden)
        if mask is not None:
            x = x * mask[..., None]
        x, gate = self.depth_conv(x.mT).mT.chunk(2, dim=-1)  # (B, T, hidden) each
        return pointwise(self.point_conv.conv, x * F.silu(gate))


def pointwise(conv: nn.Module, x: Tensor) -> Tensor:
    """A convolution that sees one position at a time, on (B, T, C): as a matrix product, which CPUs do faster."""
    assert isinstance(conv, nn.Conv1d | nn.Conv2d)
    return F.linear(x, conv.weight.flatten(1), conv.bias)


class TransformerBlock(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        heads, head_dim = config.num_attention_heads, config.attention_head_dim
        self.attn = LinearAttention(config.dim, heads, head_dim)
        self.cross_attn = CrossAttention(config.dim, heads, head_dim)
        self.ff = GatedConvFeedForward(config.dim, int(config.dim * config.mlp_ratio))
        self.scale_shift_table = nn.Parameter(torch.empty(6, config.dim))

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        context: KeyValue,
        rotation: Rotation,
        mask: Tensor | None,
        context_mask: Tensor | None,
        query_scale: Tensor | None,
    ) -> Tensor:
        """(B, T, dim) to the same shape; `modulation` (B, 6, dim) comes from the timestep."""
        table = (self.scale_shift_table + modulation).unsqueeze(2)  # (B, 6, 1, dim)
        shift_attn, scale_attn, gate_attn, shift_ff, scale_ff, gate_ff = table.unbind(1)
        normed = F.rms_norm(x, (x.shape[-1],), eps=NORM_EPS)
        x = x + gate_attn * self.attn(modulate(normed, shift_attn, scale_attn), rotation, mask)
        x = x + self.cross_attn(x, context, rotation, context_mask, query_scale)
        normed = F.rms_norm(x, (x.shape[-1],), eps=NORM_EPS)
        return x + gate_ff * self.ff(modulate(normed, shift_ff, scale_ff), mask)


class PatchEmbedding(nn.Module):
    """One column of latents (channels times height) to one token."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        channels, height = config.in_channels, config.latent_height
        expand = nn.Conv2d(channels, config.patch_channels, (height, 1))
        norm = nn.GroupNorm(GROUP_NORM_GROUPS, config.patch_channels, eps=NORM_EPS)
        contract = nn.Conv2d(config.patch_channels, config.dim, 1)
        self.early_conv_layers = nn.Sequential(expand, norm, contract)

    def forward(self, latents: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, channels, height, T) to (B, T, dim). The group norm's statistics leave padded frames out."""
        expand, norm, contract = self.early_conv_layers
        assert isinstance(norm, nn.GroupNorm)
        x = pointwise(expand, latents.flatten(1, 2).mT).mT  # (B, patch_channels, T)
        x = norm(x) if mask is None else masked_group_norm(x, norm, mask)
        return pointwise(contract, x.mT)  # (B, T, dim)


def masked_group_norm(x: Tensor, norm: nn.GroupNorm, mask: Tensor) -> Tensor:
    """Group norm of (B, C, T) over the frames where `mask` (B, T) is true. Statistics in float32."""
    grouped = x.float().unflatten(1, (norm.num_groups, -1))  # (B, G, C / G, T)
    frame = mask[:, None, None, :].float()
    count = frame.sum(dim=(2, 3), keepdim=True) * grouped.shape[2]
    mean = (grouped * frame).sum(dim=(2, 3), keepdim=True) / count
    variance = ((grouped - mean).square() * frame).sum(dim=(2, 3), keepdim=True) / count
    normed = ((grouped - mean) * torch.rsqrt(variance + norm.eps)).flatten(1, 2).to(x.dtype)  # (B, C, T)
    return normed * norm.weight[:, None] + norm.bias[:, None]


class FinalLayer(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.out_channels = config.out_channels
        self.linear = nn.Linear(config.dim, config.latent_height * config.out_channels)
        self.scale_shift_table = nn.Parameter(torch.empty(2, config.dim))

    def forward(self, x: Tensor, embedded_timestep: Tensor) -> Tensor:
        """(B, T, dim) to (B, channels, height, T)."""
        shift, scale = (self.scale_shift_table + embedded_timestep[:, None]).unsqueeze(2).unbind(1)  # (B, 1, dim) each
        x = self.linear(
            modulate(F.rms_norm(x, (x.shape[-1],), eps=NORM_EPS), shift, scale)
        )  # (B, T, height * channels)
        return x.unflatten(-1, (-1, self.out_channels)).permute(0, 3, 2, 1).contiguous()


class TimestepEmbedding(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(TIMESTEP_CHANNELS, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, timestep: Tensor) -> Tensor:
        """Timesteps (B,) in 0..1000, float32, to (B, dim). Sinusoids as in DDPM, cosines first."""
        half = TIMESTEP_CHANNELS // 2
        frequency = torch.exp(-math.log(10_000.0) * torch.arange(half, device=timestep.device).float() / half)
        angles = timestep.float()[:, None] * frequency  # (B, half)
        sinusoids = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(sinusoids)))


@dataclass(frozen=True)
class Context:
    """What latent frames attend to, ready for every step: keys and values of each block, and which of them are real."""

    key_values: tuple[KeyValue, ...]  # one per block, each (B, H, C, D)
    mask: Tensor | None  # (B, C), true at real positions; None if all are

    def first_rows(self, count: int) -> "Context":
        """The first `count` rows of the batch, without a copy."""
        mask = None if self.mask is None else self.mask[:count]
        return Context(tuple((k[:count], v[:count]) for k, v in self.key_values), mask)


class Transformer(nn.Module):
    """The diffusion transformer with its lyric encoder."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.proj_in = PatchEmbedding(config)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.num_layers))
        self.final_layer = FinalLayer(config)
        self.timestep_embedder = TimestepEmbedding(dim)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.speaker_embedder = nn.Linear(config.speaker_embedding_dim, dim)
        self.genre_embedder = nn.Linear(config.text_embedding_dim, dim)
        self.lyric_embs = nn.Embedding(config.lyric_encoder_vocab_size, config.lyric_hidden_size)
        self.lyric_encoder = LyricEncoder(
            LyricEncoderConfig(
                config.lyric_hidden_size,
                config.lyric_encoder_heads,
                config.lyric_encoder_ff_dim,
                config.lyric_encoder_layers,
            )
        )
        self.lyric_proj = nn.Linear(config.lyric_hidden_size, dim)

    @classmethod
    def load(cls, folder: Path, device: torch.device, dtype: torch.dtype) -> Self:
        """From `ace_step_transformer/`. Raises CheckpointError naming whatever does not fit."""
        config = TransformerConfig.from_json(read_config(folder))
        with torch.device("meta"):
            model = cls(config)
        load_weights(model, folder, unused=unused_in_generation, device=device, dtype=dtype)
        return model.eval().requires_grad_(False)

    def compile_blocks(self) -> None:
        """Compile what every forward runs, once for all lengths. The first forwards are slow."""
        for block in self._blocks:
            block.compile(dynamic=True)

    def encode_context(
        self,
        text: Tensor,
        text_mask: Tensor,
        speaker: Tensor,
        lyric_ids: Tensor,
        lyric_mask: Tensor,
        lyric_query_scale: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Hidden states (B, 1 + L + N, dim) of speaker, prompt and lyrics in this order, and their mask, true where
        real.

        text (B, L, text_dim), speaker (B, 512), lyric_ids (B, N) int64; masks (B, L) and (B, N), nonzero where real.
        `lyric_query_scale` (B,) weakens the lyric encoder's attention row by row (entropy-rectifying guidance).
        """
        lyric_mask = lyric_mask.bool()
        lyrics = self.lyric_encoder(
            self.lyric_embs(lyric_ids), None if bool(lyric_mask.all()) else lyric_mask, lyric_query_scale
        )
        parts = [self.speaker_embedder(speaker).unsqueeze(1), self.genre_embedder(text), self.lyric_proj(lyrics)]
        spoken = torch.ones_like(text_mask[:, :1], dtype=torch.bool)
        return torch.cat(parts, dim=1), torch.cat([spoken, text_mask.bool(), lyric_mask], dim=1)

    def prepare_context(self, hidden: Tensor, mask: Tensor) -> Context:
        """Keys and values of every block for hidden states (B, C, dim) with mask (B, C): needed once a request."""
        rotation = self._rotation(hidden.shape[1], hidden.device)
        pairs = tuple(block.cross_attn.project_context(hidden, rotation) for block in self._blocks)
        return Context(pairs, None if bool(mask.all()) else mask)

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        context: Context,
        mask: Tensor | None = None,
        query_scale: Tensor | None = None,
    ) -> Tensor:
        """Velocity (B, 8, 16, T) of noisy latents (B, 8, 16, T) at timesteps (B,) in 0..1000.

        `mask` (B, T) is true at frames of the song, None if there is no padding; padded frames of the answer mean
        nothing. `query_scale` (B,) weakens the cross-attention of the blocks in `ERG_BLOCKS` row by row.
        """
        embedded = self.timestep_embedder(timestep)  # (B, dim)
        modulation = self.t_block(embedded).unflatten(-1, (6, -1))  # (B, 6, dim)
        x = self.proj_in(latents, mask)  # (B, T, dim)
        rotation = self._rotation(x.shape[1], x.device)
        for i, (block, key_value) in enumerate(zip(self._blocks, context.key_values, strict=True)):
            scale = query_scale if i in ERG_BLOCKS else None
            x = block(x, modulation, key_value, rotation, mask, context.mask, scale)
        return self.final_layer(x, embedded)

    @property
    def _blocks(self) -> Sequence[TransformerBlock]:
        return self.transformer_blocks  # type: ignore[return-value]

    def _rotation(self, length: int, device: torch.device) -> Rotation:
        return rotary_angles(length, self.config.attention_head_dim, self.config.rope_theta, device)
