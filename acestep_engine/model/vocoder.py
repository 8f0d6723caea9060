"""ADaMoS-HiFiGAN v1, the vocoder of ACE-Step v1: a ConvNeXt backbone and a HiFi-GAN head.

ConvNeXt: Liu et al. 2022; HiFi-GAN: Kong et al. 2020. Modules carry the published tensor names; the published weight
norm is folded into plain convolutions when the weights are loaded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acestep_engine.errors import CheckpointError
from acestep_engine.model.linear import Linear, PointwiseConv1d
from acestep_engine.model.time_convs import MOST_FOLDED, DepthwiseConv, TimeConv, TimeUpsample
from acestep_engine.model.windows import equal_windows, with_halo

NORM_EPS = 1e-6
STEM_KERNEL_SIZE = 7

# The head's residual blocks run over tiles of time, which gives the same audio: a tile's values fit a CPU's cache, and
# a long song does not need memory for all of its activations. On a GPU tiles only bound the memory.
CPU_TILE_VALUES = 2**20
GPU_TILE_VALUES = 2**27
MIN_TILE_SAMPLES = 4096  # long beside the halo, so that little is computed twice


@dataclass(frozen=True)
class VocoderConfig:
    """Sizes, as the published `config.json` names them; one entry per stage in every tuple."""

    input_channels: int
    depths: tuple[int, ...]
    dims: tuple[int, ...]
    kernel_size: int
    upsample_rates: tuple[int, ...]
    upsample_kernel_sizes: tuple[int, ...]
    resblock_kernel_sizes: tuple[int, ...]
    resblock_dilation_sizes: tuple[tuple[int, ...], ...]
    upsample_initial_channel: int
    pre_conv_kernel_size: int
    post_conv_kernel_size: int

    @property
    def samples_per_frame(self) -> int:
        """Audio samples made from one mel frame."""
        return prod(self.upsample_rates)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "VocoderConfig":
        """Read a published config. Raises CheckpointError for a missing field or a variant that v1 never used."""
        try:
            sizes = cls(
                input_channels=int(config["input_channels"]),
                depths=tuple(config["depths"]),
                dims=tuple(config["dims"]),
                kernel_size=int(config["kernel_sizes"][0]),
                upsample_rates=tuple(config["upsample_rates"]),
                upsample_kernel_sizes=tuple(config["upsample_kernel_sizes"]),
                resblock_kernel_sizes=tuple(config["resblock_kernel_sizes"]),
                resblock_dilation_sizes=tuple(tuple(dilations) for dilations in config["resblock_dilation_sizes"]),
                upsample_initial_channel=int(config["upsample_initial_channel"]),
                pre_conv_kernel_size=int(config["pre_conv_kernel_size"]),
                post_conv_kernel_size=int(config["post_conv_kernel_size"]),
            )
            plain = len(config["kernel_sizes"]) == 1 and not config.get("use_template", False)
            consistent = sizes.dims[-1] == config["num_mels"] and sizes.samples_per_frame == config["hop_length"]
        except KeyError as error:
            raise CheckpointError(f"the vocoder's config lacks {error}") from error
        except (TypeError, ValueError, IndexError) as error:
            raise CheckpointError(f"the vocoder's config has a malformed value: {error}") from error
        if not plain:
            raise CheckpointError(
                "the vocoder's config asks for a template or parallel kernels, which v1 does not have"
            )
        if not consistent:
            raise CheckpointError(
                "the vocoder's config contradicts itself: num_mels must be the last of dims "
                "and hop_length the product of upsample_rates"
            )
        return sizes


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, T)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mT).mT


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution and a pointwise MLP, scaled per channel and added to the input (B, C, T)."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.dwconv = DepthwiseConv(channels, kernel_size)
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.pwconv1 = Linear(channels, 4 * channels)
        self.pwconv2 = Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).mT)  # (B, T, C)
        y = self.pwconv2(F.gelu(self.pwconv1(y)))
        scaled: Tensor = self.gamma * y
        return x + scaled.mT


class ConvNeXtBackbone(nn.Module):
    """Mel (B, input_channels, T) to features (B, dims[-1], T)."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        dims = config.dims
        reach = STEM_KERNEL_SIZE // 2
        stem = nn.Conv1d(config.input_channels, dims[0], STEM_KERNEL_SIZE, padding=reach, padding_mode="replicate")
        self.channel_layers = nn.ModuleList([nn.Sequential(stem, ChannelNorm(dims[0], eps=NORM_EPS))])
        for before, after in pairwise(dims):
            self.channel_layers.append(
                nn.Sequential(ChannelNorm(before, eps=NORM_EPS), PointwiseConv1d(before, after, 1))
            )
        self.stages = nn.ModuleList(
            nn.Sequential(*(ConvNeXtBlock(channels, config.kernel_size) for _ in range(depth)))
            for channels, depth in zip(dims, config.depths, strict=True)
        )
        self.norm = ChannelNorm(dims[-1], eps=NORM_EPS)
        self.halo = reach + sum(config.depths) * (config.kernel_size // 2)  # frames seen on either side

    def forward(self, mel: Tensor) -> Tensor:
        x = mel
        for channel_layer, stage in zip(self.channel_layers, self.stages, strict=True):
            x = stage(channel_layer(x))
        features: Tensor = self.norm(x)
        return features


class ResBlock(nn.Module):
    """Pairs of convolutions, the first of each pair dilated, each pair added to its input (B, C, 1, T)."""

    def __init__(self, channels: int, kernel_size: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(TimeConv(channels, channels, kernel_size, dilation) for dilation in dilations)
        self.convs2 = nn.ModuleList(TimeConv(channels, channels, kernel_size) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            x = plain(F.silu(dilated(F.silu(x)), inplace=True)).add_(x)
        return x


class HiFiGANHead(nn.Module):
    """Features (B, C, T) to audio (B, 1, T * samples_per_frame) in [-1, 1].

    Every stage upsamples, halves the channels and averages residual blocks of several kernel sizes. An output sample
    depends on at most `halo` frames on either side of its own.
    """

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        channels = config.upsample_initial_channel
        self.conv_pre = TimeConv(config.dims[-1], channels, config.pre_conv_kernel_size)
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for rate, kernel_size in zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True):
            self.ups.append(TimeUpsample(channels, kernel_size, rate))
            channels //= 2
            self.resblocks.extend(
                ResBlock(channels, kernel, dilations)
                for kernel, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
            )
        self.blocks_per_stage = len(config.resblock_kernel_sizes)
        self.block_halo = max(  # samples that the widest block sees on either side, or a few more
            _foldable((kernel_size - 1) // 2 * (sum(dilations) + len(dilations)))
            for kernel_size, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
        )
        self.conv_post = TimeConv(channels, 1, config.post_conv_kernel_size)
        self.rates = config.upsample_rates
        halo = self.conv_post.margin
        halos = []
        for rate, kernel_size in zip(reversed(self.rates), reversed(config.upsample_kernel_sizes), strict=True):
            halo = _foldable(halo)
            halos.append(halo)
            halo = (halo + self.block_halo + (kernel_size + rate) // 2 - 1) // rate
        self.halos_after = tuple(reversed(halos))  # per stage: samples of its output that the rest sees on either side
        self.halo = halo + self.conv_pre.margin

    def forward(self, features: Tensor, start: int, stop: int) -> Tensor:
        """Audio (B, 1, N) of frames [start, stop). The others are context, as far as they are seen.

        A stage passes on no more context than the rest sees, so that little is computed to be dropped.
        """
        first, last = with_halo(start, stop, self.halo, features.shape[-1])
        start, stop = start - first, stop - first
        x = features[..., None, first:last].contiguous(memory_format=torch.channels_last)  # (B, C, 1, T)
        x = F.silu(self.conv_pre(x), inplace=True)
        for stage, (up, rate, halo) in enumerate(zip(self.ups, self.rates, self.halos_after, strict=True)):
            x = up(x)
            start, stop = start * rate, stop * rate
            first, last = with_halo(start, stop, halo, x.shape[-1])
            x = self._activated_average(stage, x, first, last)
            start, stop = start - first, stop - first
        audio: Tensor = self.conv_post(x).tanh()
        return audio[:, :, 0, start:stop]

    def _activated_average(self, stage: int, x: Tensor, start: int, stop: int) -> Tensor:
        """SiLU of the mean of a stage's residual blocks for [start, stop) of x (B, C, 1, T), tile by tile without
        gradients.

        A tile is computed with as much context on both sides as the blocks can see, and the context is cut off.
        """
        first = stage * self.blocks_per_stage
        blocks = self.resblocks[first : first + self.blocks_per_stage]
        if torch.is_grad_enabled():  # autograd keeps all activations anyway, and does not follow what fills a buffer
            return F.silu(_sum_of(blocks, x)[..., start:stop] / len(blocks))
        values = CPU_TILE_VALUES if x.device.type == "cpu" else GPU_TILE_VALUES
        size = max(MIN_TILE_SAMPLES, values // (x.shape[0] * x.shape[1])) // MOST_FOLDED * MOST_FOLDED
        average = torch.empty_like(x[..., start:stop], memory_format=torch.channels_last)
        for tile_start, tile_stop in equal_windows(start, stop, size, MOST_FOLDED):
            first, last = with_halo(tile_start, tile_stop, self.block_halo, x.shape[-1])
            kept = _sum_of(blocks, x[..., first:last])[..., tile_start - first : tile_stop - first]
            tile = average[..., tile_start - start : tile_stop - start]
            F.silu(torch.div(kept, len(blocks), out=tile), inplace=True)
        return average


def _foldable(halo: int) -> int:
    """So much or a little more, with which a tile stays of a length that convolutions can fold."""
    return -(-2 * halo // MOST_FOLDED) * MOST_FOLDED // 2


def _sum_of(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    total = blocks[0](x)
    for block in blocks[1:]:
        total += block(x)
    return total


class Vocoder(nn.Module):
    """Log-mel (B, input_channels, T) to audio (B, 1, T * samples_per_frame) in [-1, 1] at the mel's sampling rate.

    Convolutions only: audio depends on at most `halo` frames on either side of its own.
    """

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = ConvNeXtBackbone(config)
        self.head = HiFiGANHead(config)
        self.halo = self.backbone.halo + self.head.halo

    def forward(self, mel: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Audio (B, 1, N) of frames [start, stop): the same, alone or as a part of all."""
        stop = mel.shape[-1] if stop is None else stop
        first, last = with_halo(start, stop, self.halo, mel.shape[-1])
        features = self.backbone(mel[..., first:last])
        audio: Tensor = self.head(features, start - first, stop - first)
        return audio

    @staticmethod
    def unused(name: str) -> bool:
        """The published file also holds the mel filter bank and window, which are constants (`mel.LogMel`)."""
        return name.startswith("mel_transform.")
