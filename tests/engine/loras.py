"""Tiny adapters of the tiny transformer, made by peft, and what peft itself makes of the model with them."""

import json
import warnings
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from acestep_engine.lora import METADATA_KEY, AdapterContent, read_adapter
from acestep_engine.model.transformer import Transformer
from acestep_engine.params import Adapter
from tests.engine.small import SMALL, loaded_transformer

PUBLISHED_TARGETS = ["speaker_embedder", "linear_q", "linear_k", "linear_v", "to_q", "to_k", "to_v", "to_out.0"]
# Whatever else an adapter may adapt.
OTHER_TARGETS = [
    "genre_embedder", "lyric_proj", "embed.out.0", "linear_out", "linear_pos", "w_1", "w_2", "linear_1", "linear_2",
    "t_block.1", "final_layer.linear", "inverted_conv.conv", "point_conv.conv",
]  # fmt: skip


@dataclass(frozen=True)
class Lora:
    """An adapter drawn from a seed, as peft is asked for it."""

    seed: int = 0
    rank: int = 4
    alpha: float = 2.0
    rslora: bool = False
    targets: tuple[str, ...] = tuple(PUBLISHED_TARGETS)
    strength: float = 0.5  # of lora_B, which peft begins at zero
    pattern: tuple[tuple[str, int, float], ...] = ()  # module, rank, alpha


@cache
def peft_model(lora: Lora) -> PeftModel:
    model = deepcopy(loaded_transformer())
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # any number works
        use_rslora=lora.rslora,
        target_modules=list(lora.targets),
        rank_pattern={module: rank for module, rank, _ in lora.pattern},
        alpha_pattern={module: alpha for module, _, alpha in lora.pattern},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(model, config)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(lora.seed)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            strength = lora.strength if "lora_B" in name else 1.0
            noise = torch.randn(parameter.shape, generator=generator) / parameter.shape[1] ** 0.5
            parameter.data.copy_(strength * noise)
    return wrapped.requires_grad_(False)


def tensors_of(lora: Lora) -> dict[str, Tensor]:
    """Named as peft names them."""
    return {name: tensor.clone() for name, tensor in get_peft_model_state_dict(peft_model(lora)).items()}


def config_of(lora: Lora) -> dict[str, Any]:
    config = peft_model(lora).peft_config["default"].to_dict()
    return {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}


def save_peft_folder(lora: Lora, folder: Path) -> Path:
    """`adapter_model.safetensors` and `adapter_config.json`, by peft."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model(lora).save_pretrained(str(folder))
    return folder


def save_diffusers_file(lora: Lora, folder: Path, *, metadata: bool = True) -> Path:
    """`pytorch_lora_weights.safetensors`, as diffusers' models save it: without peft's prefix."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name.removeprefix("base_model.model."): tensor for name, tensor in tensors_of(lora).items()}
    header = {"format": "pt"} | ({METADATA_KEY: json.dumps(config_of(lora))} if metadata else {})
    save_file(tensors, folder / "pytorch_lora_weights.safetensors", header)
    return folder


@cache
def merged_transformer(lora: Lora, weight: float = 1.0) -> Transformer:
    """The model with the adapter in its weights, by peft, and folded."""
    model = deepcopy(peft_model(lora))
    for module in model.modules():
        if hasattr(module, "set_scale") and hasattr(module, "lora_A"):
            module.set_scale("default", weight)
    merged = model.merge_and_unload()
    assert isinstance(merged, Transformer)
    merged.fold()
    return merged


def read(path: Path) -> AdapterContent:
    return read_adapter(path, SMALL)


def registered(path: Path, weight: float = 1.0, name: str = "one") -> Adapter:
    """As a request names it."""
    return Adapter(name, read(path).digest, str(path), weight)
