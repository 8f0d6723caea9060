"""The real sizes on a real GPU, with random weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from acestep_engine.batch import Batch, Share
from acestep_engine.conditioning import Conditioning
from acestep_engine.context import ContextBuilder
from acestep_engine.model.config import TransformerConfig
from acestep_engine.model.transformer import Transformer
from acestep_engine.params import GenerationParams, latent_frames
from acestep_engine.tasks import begin
from tests.parity import relative_error

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def random_transformer(config: TransformerConfig, device: torch.device, dtype: torch.dtype) -> Transformer:
    """Without a moment at which it is held in float32."""
    with torch.device("meta"):
        model = Transformer(config).to(dtype)
    model.to_empty(device=device).eval().requires_grad_(False)
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.normal_(std=0.02)
    model.fold()
    return model


def share(
    contexts: ContextBuilder,
    config: TransformerConfig,
    params: GenerationParams,
    device: torch.device,
) -> Share:
    """What the first forward of a song asks for, with a prompt of 32 tokens and lyrics of 300."""
    text, weakened = np.random.default_rng(params.seed).standard_normal((2, 32, config.text_embedding_dim), np.float32)
    lyrics = np.random.default_rng(params.seed).integers(1, config.lyric_encoder_vocab_size, 300)
    context = contexts.build(params, Conditioning(text, weakened, lyrics, np.ones_like(lyrics)))
    return Share(begin(params, None, device).queries(), context)


@torch.inference_mode()
def check_shared_forward(config: TransformerConfig, device: torch.device, dtype: torch.dtype, scale_s: float) -> None:
    """Songs of unlike lengths and guidance get finite velocities, close to those that each gets alone."""
    model = random_transformer(config, device, dtype)
    batch, contexts = Batch(model, device, dtype), ContextBuilder(model, device, dtype)
    wanted = [
        GenerationParams("", "", 60 * scale_s, seed=1, guidance_interval=1.0),
        GenerationParams("", "", 10 * scale_s, seed=2, guidance_scale=1.0),
        GenerationParams("", "", 30 * scale_s, seed=3, guidance_interval=1.0, use_erg_lyric=True),
    ]
    shares = [share(contexts, config, params, device) for params in wanted]
    for params, asked, velocities in zip(wanted, shares, batch.forward(shares), strict=True):
        (alone,) = batch.forward([asked])
        assert len(velocities) == (2 if params.guided else 1)
        for velocity, same in zip(velocities, alone, strict=True):
            assert velocity.shape == (8, 16, latent_frames(params.duration_s))
            assert velocity.dtype == torch.float32
            assert bool(velocity.isfinite().all())
            assert relative_error(velocity, same) < (1e-5 if dtype == torch.float32 else 0.05)


def test_full_size_songs_share_a_forward_in_bfloat16(golden: Path) -> None:
    config = json.loads((golden / "manifest-v1-3.5b.json").read_text())["ace_step_transformer"]["config"]
    check_shared_forward(TransformerConfig.from_json(config), DEVICE, torch.bfloat16, scale_s=1.0)
