"""Modules from the meta device to trained weights: how they start, and how they are stored in the published layout."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"


def start(module: nn.Module, seed: int) -> None:
    """Give a module of the meta device its first weights: torch's own for layers, one for scales, zero for biases."""
    module.to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for part in module.modules():
            reset = getattr(part, "reset_parameters", None)
            if reset is not None:
                reset()
                continue
            for name, parameter in part.named_parameters(recurse=False):
                parameter.fill_(0.0 if name == "bias" else 1.0)


def store(module: nn.Module, config: Mapping[str, Any], folder: Path) -> None:
    """Write `config.json` and the weights as float16, as the engine loads them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {name: tensor.detach().half().cpu().contiguous() for name, tensor in module.state_dict().items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
