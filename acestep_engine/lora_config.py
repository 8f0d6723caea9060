"""What peft's config of an adapter says of its ranks and scales, and what of it cannot be applied here."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from acestep_engine.errors import AdapterError

T = TypeVar("T")

# Kinds of adapters that are more than two matrices beside a weight.
REFUSED = (
    "use_dora", "lora_bias", "use_qalora", "modules_to_save", "layer_replication", "trainable_token_indices",
    "target_parameters", "alora_invocation_tokens",
)  # fmt: skip
# Initialisations that change the model's own weights, which the adapter then relies on.
REFUSED_INITIALISATIONS = ("pissa", "olora", "loftq", "corda")


@dataclass(frozen=True)
class LoraConfig:
    """Without any config, every module has scale 1."""

    rank: int | None = None
    alpha: float | None = None
    use_rslora: bool = False
    ranks: Mapping[str, int] = field(default_factory=dict)  # of the modules that end with a name
    alphas: Mapping[str, float] = field(default_factory=dict)

    def rank_of(self, module: str) -> int | None:
        return _of(self.ranks, module, self.rank)

    def alpha_of(self, module: str) -> float | None:
        return _of(self.alphas, module, self.alpha)


def read_lora_config(label: str, beside: bytes | bytearray | None, metadata: str | None) -> LoraConfig:
    """The config from the file beside the weights, else from their metadata, else none. Raises AdapterError."""
    if beside is None and metadata is None:
        return LoraConfig()
    try:
        config = json.loads(beside if beside is not None else str(metadata))
    except (ValueError, RecursionError):
        raise AdapterError(f"the config of {label} is no JSON") from None
    if not isinstance(config, dict):
        raise AdapterError(f"the config of {label} is no JSON object")
    config = {name.removeprefix("transformer."): value for name, value in config.items()}  # as pipelines save it
    kind = config.get("peft_type") or "LORA"
    if kind != "LORA":
        raise AdapterError(f"{label} is a {str(kind)[:40]!r} adapter; only LORA is applied")
    for name in REFUSED:
        if config.get(name):
            raise AdapterError(f"{label} was trained with {name}, which cannot be applied")
    if config.get("bias", "none") not in ("none", None):
        raise AdapterError(f"{label} was trained with bias {str(config['bias'])[:40]!r}, which cannot be applied")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(REFUSED_INITIALISATIONS):
        raise AdapterError(f"{label} began as {start[:40]!r}, which changes the model's own weights")
    return LoraConfig(
        rank=_number(label, "r", config.get("r"), whole=True),
        alpha=_number(label, "lora_alpha", config.get("lora_alpha")),
        use_rslora=config.get("use_rslora") is True,
        ranks=_pattern(label, "rank_pattern", config, whole=True),
        alphas=_pattern(label, "alpha_pattern", config),
    )


def _of(pattern: Mapping[str, T], module: str, default: T | None) -> T | None:
    """The value of the first name that the module is or ends with."""
    for name, value in pattern.items():
        if f".{module}".endswith(f".{name}"):
            return value
    return default


def _number(label: str, name: str, value: object, *, whole: bool = False) -> Any:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not math.isfinite(value):
        raise AdapterError(f"the config of {label} has {name} {str(value)[:40]!r}, which is no number it can have")
    return value if whole else float(value)


def _pattern(label: str, name: str, config: Mapping[str, Any], *, whole: bool = False) -> dict[str, Any]:
    pattern = config.get(name) or {}
    if not isinstance(pattern, dict):
        raise AdapterError(f"the config of {label} has a {name} that is no object")
    found = {}
    for key, value in pattern.items():
        module = key.removeprefix("^")  # diffusers anchors its names
        if not re.fullmatch(r"[\w.]+", module):
            raise AdapterError(f"the config of {label} has a {name} for {key[:80]!r}, which is no module's name")
        found[module] = _number(label, name, value, whole=True) if whole else _number(label, name, value)
    return found
