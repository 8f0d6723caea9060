"""The real sizes on a real GPU, with random weights."""

import json
from pathlib import Path

import pytest
import torch

from acestep_engine.model.transformer import Transformer, TransformerConfig
from acestep_engine.params import latent_frames

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_one_full_size_step_runs_in_bfloat16(golden: Path) -> None:
    config = json.loads((golden / "manifest-v1-3.5b.json").read_text())["ace_step_transformer"]["config"]
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = Transformer(TransformerConfig.from_json(config)).eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(torch.float32)
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
        rows = 2
        text = torch.randn(rows, 32, 768, dtype=torch.bfloat16)
        hidden, mask = model.encode_context(
            text,
            torch.ones(rows, 32, dtype=torch.long),
            torch.zeros(rows, 512, dtype=torch.bfloat16),
            torch.randint(0, 6693, (rows, 300)),
            torch.ones(rows, 300, dtype=torch.long),
        )
        latents = torch.randn(rows, 8, 16, latent_frames(60.0), dtype=torch.bfloat16)
        velocity = model(latents, torch.full((rows,), 500.0), model.prepare_context(hidden, mask))
    assert velocity.shape == latents.shape
    assert bool(velocity.isfinite().all())
