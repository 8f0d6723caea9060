"""Models of any size whose weights are random: speed does not depend on what they are."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from acestep_engine.conditioning import Conditioning
from acestep_engine.devices import pick_dtype
from acestep_engine.engine import Engine
from acestep_engine.model.autoencoder import MusicAutoencoder, build_dcae, build_vocoder
from acestep_engine.model.config import TransformerConfig
from acestep_engine.model.mel import LogMel, MelConfig
from acestep_engine.model.transformer import Transformer
from acestep_engine.params import ModelSpec

GOLDEN = Path(__file__).parent.parent / "tests" / "golden"
PROMPT_TOKENS, LYRIC_TOKENS = 64, 300  # with the speaker 365 tokens of context


@contextmanager
def tiny_checkpoint() -> Iterator[Path]:
    """The folder of the checkpoint that the golden figures belong to, for as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        path = Path(folder) / "tiny"
        subprocess.run([sys.executable, GOLDEN / "make_checkpoint.py", path], check=True, stdout=subprocess.DEVNULL)
        yield path


def random_engine(manifest: dict[str, dict[str, Any]], spec: ModelSpec, device: torch.device) -> Engine:
    """An engine of the manifest's sizes, all weights random, made on the device."""
    dtype = pick_dtype(spec.precision, device)
    with torch.device("meta"):
        transformer = Transformer(TransformerConfig.from_json(manifest["ace_step_transformer"]["config"]))
    dcae = build_dcae(manifest["music_dcae_f8c8"]["config"])
    vocoder = build_vocoder(manifest["music_vocoder"]["config"])
    generator = torch.Generator(device=device).manual_seed(0)
    for module in (transformer, dcae, vocoder):
        nn.Module.to(module.to_empty(device=device), dtype).eval().requires_grad_(False)  # diffusers' own `to` warns
        for parameter in module.parameters():
            fan_in = max(1, parameter.numel() // max(1, len(parameter))) if parameter.dim() > 1 else 2500
            parameter.normal_(std=fan_in**-0.5, generator=generator)
    transformer.fold()
    mel = LogMel(MelConfig.from_dict(manifest["music_vocoder"]["config"]))
    return Engine(spec, transformer, MusicAutoencoder(dcae, vocoder, mel, device, dtype), device)


def any_conditioning(engine: Engine) -> Conditioning:
    """Anything of the usual size; the same each time, so that it is encoded once."""
    config, random = engine.transformer.config, np.random.default_rng(0)
    text = random.standard_normal((PROMPT_TOKENS, config.text_embedding_dim)).astype(np.float32)
    ids = random.integers(1, config.lyric_encoder_vocab_size, LYRIC_TOKENS)
    return Conditioning(text, None, ids, np.ones_like(ids))
