"""Tiny real models with random weights, and what is asked of them: whole songs in a twentieth of a second."""

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from acestep_engine.batch import Batch, Share
from acestep_engine.calibrate import Calibration
from acestep_engine.conditioning import Conditioning
from acestep_engine.engine import Engine
from acestep_engine.lanes import Lanes
from acestep_engine.live_request import Unit
from acestep_engine.model.autoencoder import MusicAutoencoder, build_dcae, build_vocoder
from acestep_engine.model.config import TransformerConfig
from acestep_engine.model.mel import LogMel, MelConfig
from acestep_engine.model.packing import Context, Packing, pack
from acestep_engine.model.transformer import Transformer
from acestep_engine.params import ModelSpec
from acestep_engine.tasks.state import Query

CPU = torch.device("cpu")

SMALL = TransformerConfig(
    num_layers=17,  # past the first block that guidance weakens
    num_attention_heads=2,
    attention_head_dim=16,
    mlp_ratio=2.5,
    text_embedding_dim=12,
    lyric_encoder_vocab_size=20,
    lyric_hidden_size=16,
    lyric_encoder_heads=2,
    lyric_encoder_ff_dim=32,
    lyric_encoder_layers=5,  # past the first layer that guidance weakens
)

DCAE = {
    "in_channels": 2,
    "latent_channels": 8,
    "attention_head_dim": 8,
    "encoder_block_types": ["ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock"],
    "decoder_block_types": ["ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock"],
    "encoder_block_out_channels": [8, 8, 8, 16],
    "decoder_block_out_channels": [8, 8, 8, 16],
    "encoder_layers_per_block": [1, 1, 1, 1],
    "decoder_layers_per_block": [1, 1, 1, 1],
    "encoder_qkv_multiscales": [[], [], [], [5]],
    "decoder_qkv_multiscales": [[], [], [], [5]],
    "upsample_block_type": "interpolate",
    "downsample_block_type": "Conv",
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "scaling_factor": 0.41407,
}

VOCODER = {
    "input_channels": 128,
    "depths": [1, 1],
    "dims": [8, 16],
    "num_mels": 16,
    "kernel_sizes": [7],
    "upsample_rates": [8, 8, 8],
    "upsample_kernel_sizes": [16, 16, 16],
    "upsample_initial_channel": 16,
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1]],
    "pre_conv_kernel_size": 3,
    "post_conv_kernel_size": 3,
    "hop_length": 512,
}


def draw_weights(module: nn.Module, seed: int) -> None:
    """Off the meta device: matrices of unit gain, scales near 1, biases near 0."""
    module.to_empty(device=CPU).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            parameter.copy_(noise / math.sqrt(math.prod(parameter.shape[1:])))
        else:
            parameter.copy_(0.1 * noise + (0.0 if name.endswith("bias") else 1.0))


def loaded_transformer(config: TransformerConfig = SMALL, seed: int = 0) -> Transformer:
    """As the checkpoint has it: not folded yet."""
    with torch.device("meta"):
        model = Transformer(config)
    draw_weights(model, seed)
    return model


@cache
def small_transformer() -> Transformer:
    return folded(loaded_transformer())


def folded(model: Transformer) -> Transformer:
    model = deepcopy(model)
    model.fold()
    return model


@cache
def small_autoencoder() -> MusicAutoencoder:
    dcae, vocoder = build_dcae(DCAE), build_vocoder(VOCODER)
    for seed, module in enumerate((dcae, vocoder)):
        draw_weights(module, seed)
    return MusicAutoencoder(dcae, vocoder, LogMel(MelConfig()), CPU, torch.float32)


def latents(frames: int, seed: int = 0) -> Tensor:
    """Noise (8, 16, T)."""
    return torch.randn(8, 16, frames, generator=torch.Generator().manual_seed(seed))


def hidden_states(rows: int, tokens: int, seed: int = 0) -> Tensor:
    """What a context is prepared from: (R, C, dim)."""
    return torch.randn(rows, tokens, SMALL.dim, generator=torch.Generator().manual_seed(seed))


def context(rows: int, tokens: int, seed: int = 0, model: Transformer | None = None) -> Context:
    model = model or small_transformer()
    return model.prepare_context(hidden_states(rows, tokens, seed), torch.ones(tokens, dtype=torch.bool))


def batch() -> Batch:
    return Batch(small_transformer(), CPU, torch.float32)


@dataclass(frozen=True)
class Ask:
    """What one request asks of a forward: a row for each query scale."""

    frames: int
    timestep: float = 500.0
    query_scales: tuple[float, ...] = (1.0,)
    context_tokens: int = 9
    seed: int = 0

    def share(self) -> Share:
        song = latents(self.frames, self.seed)
        queries = (Query(song, self.timestep, row, scale) for row, scale in enumerate(self.query_scales))
        return Share(tuple(queries), self.context())

    def context(self) -> Context:
        return context(len(self.query_scales), self.context_tokens, self.seed)


def packing(asks: Sequence[Ask], contexts: Sequence[Context] | None = None) -> Packing:
    """Of what these ask for, in this order; without contexts nobody can attend to any."""
    model = small_transformer()
    table = model.rotation_table(max(ask.frames for ask in asks) + 1, CPU)
    contexts = contexts or [Context(()) for _ in asks]
    shapes = [(ask.frames, context) for ask, context in zip(asks, contexts, strict=True)]
    return pack(shapes, [ask.query_scales for ask in asks], table, torch.float32)


def conditioning(seed: int = 0, text_tokens: int = 5, lyric_tokens: int = 7, padded: int = 0) -> Conditioning:
    """Of a prompt and lyrics drawn from a seed; the last `padded` tokens of the lyrics are not real."""
    draw = np.random.default_rng(seed)
    text, weakened = draw.standard_normal((2, text_tokens, SMALL.text_embedding_dim), dtype=np.float32)
    mask = np.ones(lyric_tokens, dtype=np.int64)
    mask[lyric_tokens - padded :] = 0
    return Conditioning(text, weakened, draw.integers(1, SMALL.lyric_encoder_vocab_size, lyric_tokens), mask)


def small_engine(
    max_tokens: int = 1000, tokens_per_decoded_frame: float = 5.0, lanes: Lanes[Unit] | None = None
) -> Engine:
    spec = ModelSpec("small", "nowhere", precision="float32")
    calibration = Calibration(max_tokens, tokens_per_decoded_frame)
    return Engine(spec, small_transformer(), small_autoencoder(), CPU, calibration, lanes=lanes)
