"""The ACE-Step v1 diffusion transformer (arXiv 2506.00045): latents, a timestep and a context to a velocity.

The rows of many requests go through one forward, packed (see `packing`). What does not change over the steps of a
request is computed once: keys and values of its context, and the modulation of each timestep.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acestep_engine.devices import is_lost, is_out_of_memory
from acestep_engine.model.attention import CrossAttention, DotProducts, LinearAttention, rotary_angles
from acestep_engine.model.config import TIMESTEP_CHANNELS, TransformerConfig, unused_in_generation
from acestep_engine.model.json_files import read_config
from acestep_engine.model.linear import Linear, project
from acestep_engine.model.loading import load_weights
from acestep_engine.model.low_rank import Adaptation, WeightedAdapter, adapted, everywhere, within
from acestep_engine.model.lyric_encoder import LyricEncoder, LyricEncoderConfig
from acestep_engine.model.packing import GAP_FRAMES, Context, Packing
from acestep_engine.model.patch import PatchEmbedding

# Blocks whose cross-attention queries entropy-rectifying guidance weakens, as published. The published code weakens the
# self-attention's queries too, which changes nothing: ReLU linear attention divides by the same factor.
ERG_BLOCKS = range(15, 20)

NORM_EPS = 1e-6
COMPILED_METHODS = ("project", "cross_project", "finish")  # of a block

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Modulation:
    """How one timestep shifts, scales and gates the frames of a row, in every block and in the final layer."""

    blocks: Tensor  # (L, 6, dim): shift, 1 + scale and gate of the attention, then of the feed-forward
    final: Tensor  # (2, dim): shift, 1 + scale

    @property
    def nbytes(self) -> int:
        return self.blocks.nbytes + self.final.nbytes


class Conv(nn.Module):
    """A convolution under the name the checkpoint gives it: `<name>.conv.weight`."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel_size: int, groups: int = 1, bias: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(
            channels_in, channels_out, kernel_size, padding=kernel_size // 2, groups=groups, bias=bias
        )


class GatedConvFeedForward(nn.Module):
    """Mix-FFN of Sana: expand, a depthwise convolution over time, gate, contract."""

    taps: Tensor  # (3, C), what `fold` leaves of the depthwise convolution, with its bias
    taps_bias: Tensor  # (C,)

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.inverted_conv = Conv(dim, 2 * hidden, 1)
        self.depth_conv = Conv(2 * hidden, 2 * hidden, 3, groups=2 * hidden)
        self.point_conv = Conv(hidden, dim, 1, bias=False)

    def fold(self) -> None:
        depthwise = self.depth_conv.conv
        assert depthwise.bias is not None
        self.register_buffer("taps", depthwise.weight.squeeze(1).T.contiguous(), persistent=False)
        self.register_buffer("taps_bias", depthwise.bias.clone(), persistent=False)
        del self.depth_conv

    def forward(self, x: Tensor, gaps: Tensor, adaptation: Adaptation | None = None) -> Tensor:
        """(N, dim) to the same shape. The convolution sees zeros in the gaps, as it would past the ends of a song."""
        x = F.silu(adapted(pointwise(self.inverted_conv.conv, x), x, adaptation, "inverted_conv.conv"))
        x.index_fill_(0, gaps, 0.0)
        # Three shifted products: a depthwise convolution of packed frames is many times slower on a CPU, and these
        # fuse with their neighbours when compiled.
        before, here, after = self.taps.unbind(0)
        mixed = torch.addcmul(self.taps_bias, x, here)
        mixed[1:].addcmul_(x[:-1], before)
        mixed[:-1].addcmul_(x[1:], after)
        value, gate = mixed.chunk(2, dim=-1)  # (N, hidden) each
        x = value * F.silu(gate)
        return adapted(pointwise(self.point_conv.conv, x), x, adaptation, "point_conv.conv")


def pointwise(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """A convolution that sees one frame at a time, on (N, C)."""
    return project(x, conv.weight.flatten(1), conv.bias)


def rms_norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), eps=NORM_EPS)


def spread(of_rows: Tensor, row_of_token: Tensor) -> Tensor:
    """What belongs to each row (rows, dim) for each of its tokens (N, dim); one for all rows stays (1, dim)."""
    return of_rows if of_rows.shape[0] == 1 else of_rows.index_select(0, row_of_token)


class TransformerBlock(nn.Module):
    def __init__(self, config: TransformerConfig, dot_products: DotProducts) -> None:
        super().__init__()
        heads, head_dim = config.num_attention_heads, config.attention_head_dim
        self.attn = LinearAttention(config.dim, heads, head_dim)
        self.cross_attn = CrossAttention(config.dim, heads, head_dim, dot_products)
        self.ff = GatedConvFeedForward(config.dim, int(config.dim * config.mlp_ratio))
        self.scale_shift_table = nn.Parameter(torch.empty(6, config.dim))

    def forward(self, x: Tensor, modulation: Tensor, packing: Packing, index: int) -> Tensor:
        """(N, dim) to the same shape; `modulation` (rows or 1, 6, dim). This is block `index`."""
        scale = packing.query_scale if index in ERG_BLOCKS else None
        rows = packing.row_of_token
        project, cross_project, finish = self._parts(within(packing.adaptation, f"transformer_blocks.{index}"))
        q, k, v = project(x, modulation, rows, packing.rotation)
        attended = self.attn.attend(q, k, v, packing, x.dtype)
        x, q = cross_project(x, attended, modulation, rows, packing.rotation, scale)
        return finish(x, self.cross_attn.attend(q, packing, index), modulation, rows, packing.gaps)

    def _parts(self, adaptation: Adaptation | None) -> Sequence[Callable[..., Any]]:
        """What lies between the attentions. Adapted parts run plainly: each company would be compiled anew."""
        if adaptation is None:
            return [getattr(self, name) for name in COMPILED_METHODS]
        return [partial(getattr(TransformerBlock, name), self, adaptation=adaptation) for name in COMPILED_METHODS]

    # What lies between the attentions runs on all tokens alike, so these three can be compiled for any packing.

    def project(
        self,
        x: Tensor,
        modulation: Tensor,
        rows: Tensor,
        rotation: tuple[Tensor, Tensor],
        adaptation: Adaptation | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        shift, scale, _, _, _, _ = modulation.unbind(1)
        normed = torch.addcmul(spread(shift, rows), rms_norm(x), spread(scale, rows))
        return self.attn.project(normed, rotation, within(adaptation, "attn"))

    def cross_project(
        self,
        x: Tensor,
        attended: Tensor,
        modulation: Tensor,
        rows: Tensor,
        rotation: tuple[Tensor, Tensor],
        query_scale: Tensor | None,
        adaptation: Adaptation | None = None,
    ) -> tuple[Tensor, Tensor]:
        _, _, gate, _, _, _ = modulation.unbind(1)
        out = adapted(self.attn.to_out[0](attended), attended, adaptation, "attn.to_out.0")
        x = torch.addcmul(x, spread(gate, rows), out)
        return x, self.cross_attn.project(x, rotation, query_scale, within(adaptation, "cross_attn"))

    def finish(
        self,
        x: Tensor,
        attended: Tensor,
        modulation: Tensor,
        rows: Tensor,
        gaps: Tensor,
        adaptation: Adaptation | None = None,
    ) -> Tensor:
        _, _, _, shift, scale, gate = modulation.unbind(1)
        x = x + adapted(self.cross_attn.to_out[0](attended), attended, adaptation, "cross_attn.to_out.0")
        normed = torch.addcmul(spread(shift, rows), rms_norm(x), spread(scale, rows))
        return torch.addcmul(x, spread(gate, rows), self.ff(normed, gaps, within(adaptation, "ff")))


class FinalLayer(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.linear = Linear(config.dim, config.latent_height * config.out_channels)
        self.scale_shift_table = nn.Parameter(torch.empty(2, config.dim))

    def forward(self, x: Tensor, modulation: Tensor, rows: Tensor, adaptation: Adaptation | None) -> Tensor:
        """(N, dim) to (N, height * channels); `modulation` (rows or 1, 2, dim)."""
        shift, scale = modulation.unbind(1)
        x = torch.addcmul(spread(shift, rows), rms_norm(x), spread(scale, rows))
        return adapted(self.linear(x), x, adaptation, "linear")


class TimestepEmbedding(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear_1 = Linear(TIMESTEP_CHANNELS, dim)
        self.linear_2 = Linear(dim, dim)

    def forward(self, timestep: Tensor, adaptation: Adaptation | None) -> Tensor:
        """Timesteps (B,) in 0..1000, float32, to (B, dim). Sinusoids as in DDPM, cosines first."""
        half = TIMESTEP_CHANNELS // 2
        frequency = torch.exp(-math.log(10_000.0) * torch.arange(half, device=timestep.device).float() / half)
        angles = timestep.float()[:, None] * frequency  # (B, half)
        sinusoids = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.linear_1.weight.dtype)
        hidden = F.silu(adapted(self.linear_1(sinusoids), sinusoids, adaptation, "linear_1"))
        return adapted(self.linear_2(hidden), hidden, adaptation, "linear_2")


class Transformer(nn.Module):
    """The diffusion transformer with its lyric encoder."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.proj_in = PatchEmbedding(config.in_channels, config.latent_height, config.patch_channels, dim)
        dot_products = DotProducts()
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(config, dot_products) for _ in range(config.num_layers)
        )
        self.final_layer = FinalLayer(config)
        self.timestep_embedder = TimestepEmbedding(dim)
        self.t_block = nn.Sequential(nn.SiLU(), Linear(dim, 6 * dim))
        self.speaker_embedder = Linear(config.speaker_embedding_dim, dim)
        self.genre_embedder = Linear(config.text_embedding_dim, dim)
        self.lyric_embs = nn.Embedding(config.lyric_encoder_vocab_size, config.lyric_hidden_size)
        self.lyric_encoder = LyricEncoder(
            LyricEncoderConfig(
                config.lyric_hidden_size,
                config.lyric_encoder_heads,
                config.lyric_encoder_ff_dim,
                config.lyric_encoder_layers,
            )
        )
        self.lyric_proj = Linear(config.lyric_hidden_size, dim)

    @classmethod
    def load(cls, folder: Path, device: torch.device, dtype: torch.dtype) -> Self:
        """From `ace_step_transformer/`. Raises CheckpointError naming whatever does not fit."""
        config = TransformerConfig.from_json(read_config(folder))
        with torch.device("meta"):
            model = cls(config)
        load_weights(model, folder, unused=unused_in_generation, device=device, dtype=dtype)
        model.fold()
        return model.eval().requires_grad_(False)

    @torch.no_grad()
    def fold(self) -> None:
        """Rearrange the weights for inference, once they are loaded: no forward works before."""
        self.proj_in.fold()
        for block in self._blocks:
            for part in (block.attn, block.cross_attn, block.ff):
                part.fold()

    def compile_blocks(self) -> None:
        """Compile what lies between the attentions, once for all packings. The first forwards are slow.

        Where that fails, now or in any later forward, blocks run plainly from then on, and the log says so.
        """
        try:
            for block in self._blocks:
                for name in COMPILED_METHODS:
                    setattr(block, name, torch.compile(getattr(block, name), dynamic=True))
        except Exception as error:  # noqa: BLE001  whatever it is, there is another way
            self._give_up_compiled_blocks(error)

    @property
    def is_compiled(self) -> bool:
        return COMPILED_METHODS[0] in vars(self._blocks[0])

    def use_plain_blocks(self) -> None:
        """Undo `compile_blocks`."""
        for block in self._blocks:
            for name in COMPILED_METHODS:
                vars(block).pop(name, None)

    def _give_up_compiled_blocks(self, error: Exception) -> None:
        self.use_plain_blocks()
        logger.warning("compiled blocks fail, and are not used any more: %s: %s", type(error).__name__, error)

    def encode_lyrics(
        self, ids: Tensor, mask: Tensor, query_scale: Tensor | None = None, adapter: WeightedAdapter | None = None
    ) -> Tensor:
        """Hidden states (B, N, dim) of lyric tokens (B, N) int64; `mask` (B, N) is nonzero where they are real.

        `query_scale` (B,) weakens the lyric encoder's attention row by row (entropy-rectifying guidance).
        """
        real = None if bool(mask.all()) else mask.to(ids.device).bool()
        adaptation = everywhere(adapter)
        hidden = self.lyric_encoder(self.lyric_embs(ids), real, query_scale, within(adaptation, "lyric_encoder"))
        return adapted(self.lyric_proj(hidden), hidden, adaptation, "lyric_proj")

    def join_context(
        self, text: Tensor, speaker: Tensor, lyrics: Tensor, adapter: WeightedAdapter | None = None
    ) -> Tensor:
        """Hidden states (B, 1 + L + N, dim) of speaker (B, 512), prompt (B, L, text_dim) and lyrics (B, N, dim)."""
        adaptation = everywhere(adapter)
        speaker_states = adapted(self.speaker_embedder(speaker), speaker, adaptation, "speaker_embedder")
        text_states = adapted(self.genre_embedder(text), text, adaptation, "genre_embedder")
        return torch.cat([speaker_states.unsqueeze(1), text_states, lyrics], dim=1)

    def prepare_context(self, hidden: Tensor, mask: Tensor, adapter: WeightedAdapter | None = None) -> Context:
        """Keys and values of every block for the rows (R, C, dim) of one request, needed once a request.

        `mask` (C,) is true at real positions; what is not real is left out, so that no attention needs a mask.
        """
        cos, sin = self.rotation_table(hidden.shape[1], hidden.device)
        if not bool(mask.all()):
            hidden, cos, sin = hidden[:, mask], cos[mask], sin[mask]
        rotation = cos.unsqueeze(1), sin.unsqueeze(1)  # (C, 1, D)
        adaptation, key_values = everywhere(adapter), []
        for index, block in enumerate(self._blocks):
            of_block = within(adaptation, f"transformer_blocks.{index}.cross_attn")
            key_values.append(block.cross_attn.project_context(hidden, rotation, of_block))
        return Context(tuple(key_values), adapter)

    def modulate(self, timestep: Tensor, adapter: WeightedAdapter | None = None) -> Modulation:
        """The modulation of a timestep, a scalar in 0..1000, float32."""
        (modulation,) = self.modulate_each(timestep[None], adapter)
        return modulation

    def modulate_each(self, timesteps: Tensor, adapter: WeightedAdapter | None = None) -> list[Modulation]:
        """The modulation of each of the timesteps (B,) in 0..1000, float32."""
        adaptation = everywhere(adapter)
        embedded = self.timestep_embedder(timesteps, within(adaptation, "timestep_embedder"))  # (B, dim)
        shared = adapted(self.t_block(embedded), F.silu(embedded), adaptation, "t_block.1").unflatten(-1, (6, -1))
        tables = torch.stack([block.scale_shift_table for block in self._blocks])  # (L, 6, dim)
        blocks = tables + shared.unsqueeze(1)  # (B, L, 6, dim)
        blocks[:, :, 1::3] += 1
        final = self.final_layer.scale_shift_table + embedded.unsqueeze(1)  # (B, 2, dim)
        final[:, 1] += 1
        return [Modulation(*both) for both in zip(blocks.unbind(), final.unbind(), strict=True)]

    def forward(self, latents: Sequence[Tensor], modulations: Sequence[Modulation], packing: Packing) -> list[Tensor]:
        """Velocities (8, 16, T) of noisy latents (8, 16, T), one per row of the packing, each under its modulation.

        Both are float32.
        """
        try:
            return self._velocities(latents, modulations, packing)
        except Exception as error:  # a compiler's own errors are of any class
            if not self.is_compiled or is_out_of_memory(error) or is_lost(error, packing.gaps.device):
                raise
            failure = error.with_traceback(None)  # it holds the tensors of half a forward
        self._give_up_compiled_blocks(failure)
        return self._velocities(latents, modulations, packing)

    def _velocities(
        self, latents: Sequence[Tensor], modulations: Sequence[Modulation], packing: Packing
    ) -> list[Tensor]:
        x = self._tokens(latents)  # (N, dim)
        if all(modulation is modulations[0] for modulation in modulations):
            modulations = modulations[:1]
        blocks = torch.stack([modulation.blocks for modulation in modulations], dim=1)  # (L, rows or 1, 6, dim)
        final = torch.stack([modulation.final for modulation in modulations])  # (rows or 1, 2, dim)
        for index, block in enumerate(self._blocks):
            x = block(x, blocks[index], packing, index)
        adaptation = within(packing.adaptation, "final_layer")
        return self._latents(self.final_layer(x, final, packing.row_of_token, adaptation), packing)

    def rotation_table(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions 0..length-1, each (length, D)."""
        return rotary_angles(length, self.config.attention_head_dim, self.config.rope_theta, device)

    @property
    def _blocks(self) -> Sequence[TransformerBlock]:
        return self.transformer_blocks  # type: ignore[return-value]

    def _tokens(self, latents: Sequence[Tensor]) -> Tensor:
        """Embed and pack: (N, dim), zeros in the gaps. Rows that share their latents are embedded once."""
        songs = list({id(row): row for row in latents}.values())
        embedded = {id(song): tokens for song, tokens in zip(songs, self.proj_in(songs), strict=True)}
        gap = embedded[id(songs[0])].new_zeros(GAP_FRAMES, self.config.dim)
        return torch.cat([part for row in latents for part in (embedded[id(row)], gap)])

    def _latents(self, x: Tensor, packing: Packing) -> list[Tensor]:
        """Unpack (N, height * channels) to (channels, height, T) of each row."""
        columns = x.float().unflatten(-1, (-1, self.config.out_channels))  # (N, height, channels)
        return [columns[start : start + frames].permute(2, 1, 0).contiguous() for start, frames in packing.row_frames()]
