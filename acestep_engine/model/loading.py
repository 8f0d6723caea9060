"""Strict loading of safetensors into modules built on the meta device.

A component loads only if its file holds exactly what its module needs: a missing, surplus or misshapen tensor is a
`CheckpointError` that names it. Tensors that generation never uses are declared by the component and never read.

Weight norm is folded while reading: where the module has a plain `X.weight` and the file has `X.weight_g` and
`X.weight_v`, the weight is `g * v / ||v||` with the norm over all dimensions but the first (Salimans and Kingma 2016).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from acestep_engine.errors import CheckpointError, CheckpointNotFoundError
from acestep_engine.model.json_files import label, read_json_object

WEIGHT_FILES = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "model.safetensors",
    "model.safetensors.index.json",
)
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
MAX_PROBLEMS_SHOWN = 10


def all_used(name: str) -> bool:
    """The default `unused`: every tensor of the file has to be used."""
    return False


@dataclass(frozen=True)
class _Stored:
    """A tensor in a file: its shape, whether it is floating point (None: not known), and which file."""

    shape: tuple[int, ...]
    floating: bool | None
    file: Path


def find_weights(folder: Path) -> Path:
    """The safetensors file, or the index of its shards, in a component's folder.

    Raises CheckpointNotFoundError if there is none, CheckpointError if there are only pickled weights.
    """
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    if folder.is_dir():
        pickles = sorted(entry.name for entry in folder.iterdir() if entry.suffix in PICKLE_SUFFIXES)
        if pickles:
            raise CheckpointError(f"{folder.name} holds only pickled weights ({pickles[0]}); only safetensors are read")
    raise CheckpointNotFoundError(f"{folder.name} has none of {', '.join(WEIGHT_FILES)}")


def load_weights(
    module: nn.Module,
    path: Path,
    *,
    unused: Callable[[str], bool] = all_used,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> None:
    """Fill `module`, built on the meta device, from `path`; it ends on `device`, in eval mode, without gradients.

    `path` is a `.safetensors` file, a `.safetensors.index.json`, or a folder that holds one of the usual names.
    Floating tensors are cast to `dtype`, others keep theirs. Tensors whose name `unused` accepts are not read.
    Parameters that are one object under two names (tied weights) need only one of the names in the file.
    Raises CheckpointError for pickles, a broken file, and any missing, surplus or misshapen tensor.
    """
    path = find_weights(path) if path.is_dir() else path
    stored = _stored_tensors(path)
    sources = _match(module, stored, unused, label(path))
    loaded: dict[str, Tensor] = {}
    with ExitStack() as stack:
        needed = {stored[name].file for names in sources.values() for name in names}
        files = {file: stack.enter_context(_open(file)) for file in sorted(needed)}
        for target, names in sources.items():
            parts = [files[stored[name].file].get_tensor(name) for name in names]
            # A copy even where nothing is cast: a view into the mapped file would change with the file.
            loaded[target] = _fold(parts).to(
                device=device, dtype=dtype if parts[0].is_floating_point() else None, copy=True
            )
    for aliases in _alias_groups(module):
        found = next(loaded[name] for name in aliases if name in loaded)
        loaded.update(dict.fromkeys(aliases, found))
    module.load_state_dict(loaded, strict=True, assign=True)
    module.to(device).requires_grad_(False).eval()  # the move is for buffers that no file holds


def check_names(
    module: nn.Module,
    shapes: Mapping[str, Sequence[int]],
    unused: Callable[[str], bool] = all_used,
    source: str = "the manifest",
) -> None:
    """Raise CheckpointError unless `module` could be loaded from tensors of these names and shapes."""
    stored = {name: _Stored(tuple(shape), None, Path(source)) for name, shape in shapes.items()}
    _match(module, stored, unused, source)


def _match(
    module: nn.Module, stored: Mapping[str, _Stored], unused: Callable[[str], bool], source: str
) -> dict[str, tuple[str, ...]]:
    """For each tensor of the module, the names in the file it is made of: one, or the two of weight norm."""
    problems: list[str] = []
    sources: dict[str, tuple[str, ...]] = {}
    tensors = module.state_dict(keep_vars=True)
    for aliases in _alias_groups(module):
        expected = tensors[aliases[0]]
        present = [alias for alias in aliases if alias in stored]
        for name in present or aliases[:1]:
            shapes = _source_shapes(name, tuple(expected.shape), stored)
            for part, shape in shapes.items():
                problem = _problem(part, shape, expected.is_floating_point(), stored.get(part), source)
                problems += [problem] if problem else []
            sources[name] = tuple(shapes)

    taken = {name for names in sources.values() for name in names}
    for name, tensor in stored.items():
        if name not in taken and not unused(name):
            problems.append(f"{name} {tensor.shape} in {label(tensor.file)} is not part of the model")
    if problems:
        shown = problems[:MAX_PROBLEMS_SHOWN]
        if len(problems) > len(shown):
            shown.append(f"and {len(problems) - len(shown)} more")
        raise CheckpointError("; ".join(shown))
    return sources


def _alias_groups(module: nn.Module) -> list[list[str]]:
    """Names in the state dict, those of one tied tensor together."""
    groups: dict[int, list[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        groups.setdefault(id(tensor), []).append(name)
    return list(groups.values())


def _source_shapes(name: str, shape: tuple[int, ...], stored: Mapping[str, _Stored]) -> dict[str, tuple[int, ...]]:
    """The stored names that make up tensor `name`, with the shapes they must have."""
    gain, direction = f"{name}_g", f"{name}_v"
    if name not in stored and (gain in stored or direction in stored):
        return {gain: (shape[0], *(1 for _ in shape[1:])), direction: shape}
    return {name: shape}


def _problem(name: str, shape: tuple[int, ...], floating: bool, found: _Stored | None, source: str) -> str | None:
    if found is None:
        return f"{name} {shape} is missing from {source}"
    if found.shape != shape:
        return f"{name} in {label(found.file)} has shape {found.shape}, expected {shape}"
    if found.floating is not None and found.floating != floating:
        kinds = ("integer", "floating point")
        return f"{name} in {label(found.file)} is {kinds[found.floating]}, expected {kinds[floating]}"
    return None


def _fold(parts: Sequence[Tensor]) -> Tensor:
    """One stored tensor as it is, or weight norm's gain and direction as the float32 weight they stand for."""
    if len(parts) == 1:
        return parts[0]
    gain, direction = (part.float() for part in parts)
    norm: Tensor = torch.linalg.vector_norm(direction, dim=tuple(range(1, direction.ndim)), keepdim=True)
    return direction * (gain / norm)


def _stored_tensors(path: Path) -> dict[str, _Stored]:
    """What the file, or every shard of the index, holds. Reads headers only."""
    if path.suffix in PICKLE_SUFFIXES:
        raise CheckpointError(f"{label(path)} is a pickle, which can run code when opened; only safetensors are read")
    if path.name.endswith(".safetensors"):
        return _header(path)
    if not path.name.endswith(".safetensors.index.json"):
        raise CheckpointError(f"{label(path)} is neither .safetensors nor .safetensors.index.json")
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{label(path)} has no weight_map of tensor names to file names")
    stored: dict[str, _Stored] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(f"{label(path)} names the shard {shard!r}, which is no .safetensors file beside it")
        for name, tensor in _header(path.parent / shard).items():
            if weight_map.get(name) != shard:
                raise CheckpointError(f"{name} is in {label(tensor.file)}, but not so in {label(path)}")
            stored[name] = tensor
    missing = sorted(weight_map.keys() - stored.keys())
    if missing:
        raise CheckpointError(f"{missing[0]} is missing from {path.parent.name}/{weight_map[missing[0]]}")
    return stored


def _header(file: Path) -> dict[str, _Stored]:
    with _open(file) as handle:
        slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118  it is no mapping
        return {
            name: _Stored(tuple(part.get_shape()), part.get_dtype().startswith(("F", "BF")), file)
            for name, part in slices.items()
        }


def _open(file: Path) -> Any:
    if not file.is_file():
        raise CheckpointNotFoundError(f"{label(file)} does not exist")
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{label(file)} is no valid safetensors file: {error}") from error
