"""LoRA adapters as they are published: found, read and checked completely. No torch, and nothing is ever unpickled.

Two layouts: diffusers' `pytorch_lora_weights.safetensors`, and peft's `adapter_model.safetensors` with an
`adapter_config.json`. Tensors are called `<module>.lora_A.weight` (r, in) and `<module>.lora_B.weight` (out, r), or
`lora_down` and `lora_up`, after prefixes such as `base_model.model.`. What an adapter adds to a weight is
`scale * B @ A`, where scale is alpha / r, or alpha / sqrt(r) for rslora (arXiv 2312.03732). Alpha is the tensor
`<module>.alpha`, else what the config beside the file or the file's own metadata say; a file that says nothing has
scale 1, as the published pipeline takes it.
"""

import hashlib
import math
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from acestep_engine.errors import AdapterError
from acestep_engine.lora_config import LoraConfig, read_lora_config
from acestep_engine.model.config import TIMESTEP_CHANNELS, TransformerConfig, unused_in_generation
from acestep_engine.safetensors_file import SafetensorsFile, StoredTensor, parse_safetensors

WEIGHT_NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
CONFIG_NAME = "adapter_config.json"
METADATA_KEY = "lora_adapter_metadata"  # under which diffusers keeps the config in a file's header
PREFIXES = ("base_model.model.", "transformer.", "diffusion_model.")
PARTS = {"lora_A": "down", "lora_down": "down", "lora.down": "down", "lora_B": "up", "lora_up": "up", "lora.up": "up"}
TENSOR_NAME = re.compile(rf"(?P<module>.+?)\.(?P<part>{'|'.join(map(re.escape, PARTS))})(?:\.[^.]+)?\.weight")
MAX_RANK = 2048
# What an adapter may add to one weight at most, at weight 1: weights of models are a few units, and more makes noise.
MAX_UPDATE = 1e4
MAX_CONFIG_BYTES = 2**20
MAX_PROBLEMS_SHOWN = 5


@dataclass(frozen=True, eq=False)
class AdapterUpdate:
    """Adds `scale * up @ down` to the weight (out, in) of one module. `down` (r, in), `up` (out, r)."""

    down: StoredTensor
    up: StoredTensor
    scale: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def bound(self) -> float:
        """An upper bound of the elements of `scale * up @ down`."""
        return abs(self.scale) * self.rank * self.up.largest() * self.down.largest()


@dataclass(frozen=True, eq=False)
class AdapterContent:
    """A checked adapter. `digest` is the sha256 of its files; `updates` by the name of the model's module."""

    digest: str
    nbytes: int
    updates: Mapping[str, AdapterUpdate]

    @property
    def rank(self) -> int:
        """The largest of all modules."""
        return max(update.rank for update in self.updates.values())

    @property
    def modules(self) -> tuple[str, ...]:
        """The kinds of modules it adapts, such as `cross_attn.to_q`."""
        return tuple(sorted({re.sub(r"^.*\.[0-9]+\.(?=[a-z])", "", name) for name in self.updates}))


def adaptable_modules(config: TransformerConfig) -> dict[str, tuple[int, int]]:
    """All modules of the transformer that an adapter may adapt, each with the shape (out, in) of its weight."""
    dim, lyric, hidden = config.dim, config.lyric_hidden_size, int(config.dim * config.mlp_ratio)
    modules = {
        "speaker_embedder": (dim, config.speaker_embedding_dim),
        "genre_embedder": (dim, config.text_embedding_dim),
        "lyric_proj": (dim, lyric),
        "lyric_encoder.embed.out.0": (lyric, lyric),
        "timestep_embedder.linear_1": (dim, TIMESTEP_CHANNELS),
        "timestep_embedder.linear_2": (dim, dim),
        "t_block.1": (6 * dim, dim),
        "final_layer.linear": (config.latent_height * config.out_channels, dim),
    }
    for index in range(config.lyric_encoder_layers):
        layer = f"lyric_encoder.encoders.{index}"
        modules |= {f"{layer}.self_attn.linear_{part}": (lyric, lyric) for part in ("q", "k", "v", "out", "pos")}
        modules[f"{layer}.feed_forward.w_1"] = (config.lyric_encoder_ff_dim, lyric)
        modules[f"{layer}.feed_forward.w_2"] = (lyric, config.lyric_encoder_ff_dim)
    for index in range(config.num_layers):
        block = f"transformer_blocks.{index}"
        for attention in ("attn", "cross_attn"):
            modules |= {f"{block}.{attention}.{part}": (dim, dim) for part in ("to_q", "to_k", "to_v", "to_out.0")}
        modules[f"{block}.ff.inverted_conv.conv"] = (2 * hidden, dim)
        modules[f"{block}.ff.point_conv.conv"] = (dim, hidden)
    return modules


def find_adapter(path: Path) -> Path:
    """The weights in a folder of either layout, or in a Hugging Face cache folder of one; a file is that file.

    Raises AdapterError where there are none, or only pickled ones, which are never opened.
    """
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
        raise AdapterError(f"{path.name} is a pickle, which can run code when opened; only safetensors are read")
    if not path.is_dir():
        if path.suffix != ".safetensors":
            raise AdapterError(f"{path.name} is neither a folder nor a .safetensors file")
        return path
    folder = _snapshot(path)
    for name in WEIGHT_NAMES:
        if (folder / name).is_file():
            return folder / name
    others = sorted(folder.glob("*.safetensors"))
    if len(others) == 1:
        return others[0]
    held = ", ".join(sorted(entry.name for entry in folder.iterdir())[:MAX_PROBLEMS_SHOWN]) or "nothing"
    raise AdapterError(f"{path.name} has none of {', '.join(WEIGHT_NAMES)}; it holds {held}")


def read_adapter(path: Path, model: TransformerConfig, root: Path | None = None) -> AdapterContent:
    """Read and check all of an adapter. The same bytes are checked, digested and answered.

    With a `root`, no file outside of it is opened, wherever links lead.

    Raises AdapterError naming what is wrong: a file that is none, a tensor that fits no module of the model or has the
    wrong shape, an inconsistent rank, values that are not finite, a kind of adapter that cannot be applied.
    """
    weights = find_adapter(path)
    beside = weights.parent / CONFIG_NAME
    for place in (path, weights, beside):
        if root is not None and not place.resolve().is_relative_to(root.resolve()):
            raise AdapterError(f"{place.name} leads out of the folder for adapters")
    sizes = adaptable_modules(model)
    # Every module of every kind, in float32: nothing larger can be an adapter of this model.
    most = sum(4 * MAX_RANK * (out + into) for out, into in sizes.values())
    content = _read(weights, most, root)
    config_bytes = _read(beside, MAX_CONFIG_BYTES, root) if beside.exists() else None
    file = parse_safetensors(weights.name, content)
    config = read_lora_config(weights.name, config_bytes, file.metadata.get(METADATA_KEY))
    updates = _updates(weights.name, file, config, sizes)
    for name, tensor in file.tensors.items():
        if not tensor.is_finite():
            raise AdapterError(f"{name} in {weights.name} has values that are not finite")
    for module, update in updates.items():
        if not update.bound <= MAX_UPDATE:  # NaN is not either
            problem = f"may add {update.bound:.3g} to a weight of {module}, over the limit of {MAX_UPDATE:g}"
            raise AdapterError(f"{weights.name} {problem}")
    digest = hashlib.sha256(len(content).to_bytes(8, "little"))
    digest.update(content)
    digest.update(config_bytes or b"")
    return AdapterContent(digest.hexdigest(), len(content), updates)


def _snapshot(folder: Path) -> Path:
    """The revision that a Hugging Face cache folder `models--owner--name` points to; any other folder is itself."""
    snapshots = folder / "snapshots"
    if not snapshots.is_dir():
        return folder
    try:
        revision = (folder / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        revisions = [entry.name for entry in snapshots.iterdir() if entry.is_dir()]
        if len(revisions) != 1:
            raise AdapterError(f"{folder.name} has {len(revisions)} snapshots and no refs/main to choose one") from None
        revision = revisions[0]
    if not re.fullmatch(r"[\w.-]+", revision) or revision.startswith("."):
        raise AdapterError(f"{folder.name}/refs/main does not name a snapshot")
    return snapshots / revision


def _read(path: Path, limit_bytes: int, root: Path | None) -> bytearray:
    """A regular file, whole; with a `root`, one that lies under it once it is open. Raises AdapterError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not hold us up
    except OSError as error:
        raise AdapterError(f"{path.name} cannot be read: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise AdapterError(f"{path.name} is not a regular file")
        if root is not None and not _opened_path(descriptor, path).is_relative_to(root.resolve()):
            raise AdapterError(f"{path.name} leads out of the folder for adapters")
        if status.st_size > limit_bytes:
            raise AdapterError(f"{path.name} has {status.st_size:,} bytes, over the limit of {limit_bytes:,}")
        content = bytearray(status.st_size)
        if file.readinto(content) != len(content):
            raise AdapterError(f"{path.name} shrank while it was read")
        return content


def _opened_path(descriptor: int, path: Path) -> Path:
    """Where an open file lies, whatever its links have become. Only Linux tells; elsewhere the links are asked."""
    link = Path(f"/proc/self/fd/{descriptor}")
    return link.readlink() if link.exists() else path.resolve()


def _updates(
    label: str, file: SafetensorsFile, config: LoraConfig, sizes: Mapping[str, tuple[int, int]]
) -> dict[str, AdapterUpdate]:
    """The updates of the modules that generation uses. Raises AdapterError naming all that does not fit."""
    pairs, alphas, problems = _by_module(file)
    updates = {}
    for module in sorted(pairs.keys() | alphas.keys()):
        if unused_in_generation(f"{module}.weight"):
            continue
        problem = _problem(module, pairs.get(module, {}), sizes)
        if problem is not None:
            problems.append(problem)
            continue
        down, up = pairs[module]["down"].as_matrix(), pairs[module]["up"].as_matrix()
        rank = down.shape[0]
        expected = config.rank_of(module)
        if expected is not None and expected != rank:
            problems.append(f"{module} has rank {rank}, but the config says {expected}")
            continue
        alpha = alphas.get(module, config.alpha_of(module))
        scale = 1.0 if alpha is None else alpha / (math.sqrt(rank) if config.use_rslora else rank)
        updates[module] = AdapterUpdate(down, up, scale)
    if problems:
        shown = problems[:MAX_PROBLEMS_SHOWN]
        if len(problems) > len(shown):
            shown.append(f"and {len(problems) - len(shown)} more")
        raise AdapterError(f"{label}: {'; '.join(shown)}")
    if not updates:
        raise AdapterError(f"{label} adapts no module that makes music")
    return updates


def _by_module(file: SafetensorsFile) -> tuple[dict[str, dict[str, StoredTensor]], dict[str, float], list[str]]:
    """The tensors of each module by part, the alphas, and what is wrong with names."""
    pairs: dict[str, dict[str, StoredTensor]] = {}
    alphas: dict[str, float] = {}
    problems = []
    for name, tensor in file.tensors.items():
        if name.endswith(".alpha") and math.prod(tensor.shape) == 1:
            alphas[_module(name.removesuffix(".alpha"))] = tensor.item()
            continue
        match = TENSOR_NAME.fullmatch(name)
        if match is None:
            problems.append(f"{_shown(name)} is no part of a LoRA adapter (lora_A, lora_B or alpha)")
            continue
        parts = pairs.setdefault(_module(match["module"]), {})
        if PARTS[match["part"]] in parts:
            problems.append(f"{_shown(name)} is there twice under different names")
        parts[PARTS[match["part"]]] = tensor
    return pairs, alphas, problems


def _module(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _problem(module: str, parts: Mapping[str, StoredTensor], sizes: Mapping[str, tuple[int, int]]) -> str | None:
    """What is wrong with the matrices of one module."""
    shape = sizes.get(module)
    if shape is None:
        return f"{_shown(module)} is no module of the model that can be adapted"
    if parts.keys() != {"down", "up"}:
        lacking = "lora_A" if "down" not in parts else "lora_B"
        return f"{module} lacks its {lacking}"
    (out, into), down, up = shape, parts["down"].shape, parts["up"].shape
    rank = down[0] if down else 0
    # Convolutions of one tap have their matrices as (r, in, 1).
    if not 1 <= rank <= MAX_RANK:
        return f"{module} has rank {rank}, must be 1 to {MAX_RANK}"
    if not _is_matrix(down, (rank, into)):
        return f"{module} has lora_A {down}, expected {(rank, into)}"
    if not _is_matrix(up, (out, rank)):
        return f"{module} has lora_B {up}, expected {(out, rank)}"
    return None


def _is_matrix(shape: tuple[int, ...], expected: tuple[int, int]) -> bool:
    return shape[:2] == expected and math.prod(shape[2:]) == 1


def _shown(name: str) -> str:
    return repr(name if len(name) <= 80 else f"{name[:77]}...")
