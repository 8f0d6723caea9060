"""Which checkpoint to run: what was asked for, what exists, what /initialize may ask for."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from acestep_engine.checkpoint import NANO_PATH, check_folder
from acestep_engine.errors import CheckpointError
from acestep_engine.params import ModelSpec, Precision
from deployments.messages import ModelUnavailableError

AUTO, NANO, PUBLISHED = "auto", "nano", "v1-3.5b"
PUBLISHED_FOLDER = "ACE-Step-v1-3.5B"


@dataclass(frozen=True)
class ModelChoice:
    """What the settings say about models. `model` is auto, nano, v1-3.5b, a key of `checkpoints`, or a folder."""

    model: str
    checkpoints: Mapping[str, str]  # name to folder
    checkpoint_dir: Path  # v1-3.5b lies here, or in a folder of its published name in here
    download: bool  # v1-3.5b may be fetched when it is not there
    bf16: bool | None = None
    torch_compile: bool | None = None
    cuda_graphs: bool | None = None
    cpu_offload: bool = False
    overlapped_decode: bool = False


@dataclass(frozen=True)
class Models:
    """The model to start with, and all that may be asked for by name."""

    first: ModelSpec
    named: Mapping[str, ModelSpec] = field(default_factory=dict)
    download_to: str | None = None  # the folder that may be filled from the published place when it is asked for

    def downloadable(self, spec: ModelSpec) -> bool:
        return spec.path == self.download_to

    def choose(self, name: str | None, options: Mapping[str, Any], current: ModelSpec) -> ModelSpec:
        """The named model (None: the current one) with its options changed: bf16, torch_compile, cpu_offload,
        overlapped_decode, each a bool or None for unchanged. Raises ModelUnavailableError for an unknown name."""
        if name is None:
            spec = current
        elif name in self.named:
            asked = self.named[name]
            spec = dataclasses.replace(current, name=asked.name, path=asked.path)  # how to run it stays as it is
        else:
            known = ", ".join(name for name in self.named if "/" not in name)
            raise ModelUnavailableError(f"no model is called {name!r}; there are {known}")
        wanted = {key: value for key, value in options.items() if value is not None}
        if "bf16" in wanted:
            wanted["precision"] = precision(wanted.pop("bf16"))
        return dataclasses.replace(spec, **wanted)


def precision(bf16: bool | None) -> Precision:
    """Asking for bfloat16 means on a GPU, as it did in clients of the earlier server; a CPU stays with float32."""
    return "float32" if bf16 is False else "auto"


def published_folder(checkpoint_dir: Path) -> Path:
    """Where v1-3.5b is, or would be downloaded to, given the folder that checkpoints are kept in."""
    root = checkpoint_dir.expanduser().absolute()
    return root if is_checkpoint(root) else root / PUBLISHED_FOLDER


def is_checkpoint(folder: Path) -> bool:
    """Whether the folder holds every part of a checkpoint."""
    try:
        check_folder(folder)
    except CheckpointError:
        return False
    return True


def resolve_models(choice: ModelChoice, cluster_has_gpu: bool) -> Models:
    """What to start with, and the table of names. Raises ModelUnavailableError, saying what to do, if there is none.

    `auto` is the first of `checkpoints`; without any, v1-3.5b where there is a GPU and it is there or may be
    downloaded; else the bundled nano model.
    """
    published = published_folder(choice.checkpoint_dir)
    published_available = choice.download or is_checkpoint(published)
    folders = {name: Path(folder).expanduser().absolute() for name, folder in choice.checkpoints.items()}
    if published_available:
        folders.setdefault(PUBLISHED, published)
    folders.setdefault(NANO, NANO_PATH)

    auto = next(iter(choice.checkpoints), PUBLISHED if cluster_has_gpu and published_available else NANO)
    name = auto if choice.model == AUTO else choice.model
    if name == PUBLISHED and not published_available and PUBLISHED not in folders:
        raise ModelUnavailableError(
            f"v1-3.5b is not in {choice.checkpoint_dir}: fetch it with `acestep-serve download`, set `download: true`,"
            " or set `checkpoint_dir` to where it is"
        )
    if name not in folders:
        folder = Path(name).expanduser().absolute()
        if "/" not in name and not folder.is_dir():
            known = ", ".join([AUTO, *folders])
            raise ModelUnavailableError(f"no model is called {name!r}, and it is no folder; there are {known}")
        folders[name] = folder
    if not (choice.download and folders[name] == published):
        _check(name, folders[name])
    specs = {
        name: ModelSpec(
            name=Path(name).name,  # of a folder that has no name, the last part
            path=str(folder),
            precision=precision(choice.bf16),
            torch_compile=choice.torch_compile,
            cuda_graphs=choice.cuda_graphs,
            cpu_offload=choice.cpu_offload,
            overlapped_decode=choice.overlapped_decode,
        )
        for name, folder in folders.items()
    }
    return Models(specs[name], specs | {AUTO: specs[auto]}, str(published) if choice.download else None)


def _check(name: str, folder: Path) -> None:
    try:
        check_folder(folder)
    except CheckpointError as error:
        raise ModelUnavailableError(f"the model {name!r} cannot be used: {error}") from error
