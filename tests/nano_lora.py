"""Adapters of the bundled nano model, drawn from a seed."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

DIM = 256
MODULES = [f"transformer_blocks.{block}.{part}" for block in (0, 7) for part in ("attn.to_q", "cross_attn.to_v")]


def save_nano_lora(folder: Path, seed: int, rank: int = 4) -> Path:
    """A folder with `pytorch_lora_weights.safetensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    tensors = {}
    for module in MODULES:
        tensors[f"{module}.lora_A.weight"] = draw.standard_normal((rank, DIM), dtype=np.float32) / DIM**0.5
        tensors[f"{module}.lora_B.weight"] = draw.standard_normal((DIM, rank), dtype=np.float32) / rank**0.5
    save_file(tensors, folder / "pytorch_lora_weights.safetensors")
    return folder
