"""Checkpoint folders in the published layout: where they are, what they must hold."""

from pathlib import Path

from acestep_engine.errors import CheckpointNotFoundError
from acestep_engine.params import ModelSpec

TRANSFORMER, AUTOENCODER, VOCODER, TEXT_ENCODER = COMPONENTS = (
    "ace_step_transformer",
    "music_dcae_f8c8",
    "music_vocoder",
    "umt5-base",
)
COMPONENT_PARTS = tuple(f"{c}/{name}" for c in COMPONENTS for name in ("config.json", "*.safetensors"))
LYRIC_VOCABULARY = "lyric_vocab.json"

NANO_PATH = Path(__file__).parent / "nano"
NANO_NOTICE = (
    "The bundled nano model is a small one: instrumental sketches in the words that acestep_engine/nano/README.md "
    "lists, no voices. For songs: acestep-serve download."
)


def missing_parts(folder: Path) -> list[str]:
    """What a checkpoint folder lacks, by name or pattern relative to it; empty if it is complete."""
    needed = (*COMPONENT_PARTS, LYRIC_VOCABULARY)
    return [part for part in needed if not any(file.is_file() for file in folder.glob(part))]


def check_folder(folder: Path) -> None:
    """Raise CheckpointNotFoundError unless `folder` has every component. Contents are checked when they are loaded."""
    if not folder.is_dir():
        raise CheckpointNotFoundError(f"there is no checkpoint folder {folder}")
    missing = missing_parts(folder)
    if missing:
        raise CheckpointNotFoundError(f"the checkpoint folder {folder} lacks {', '.join(missing)}")


def notice(spec: ModelSpec) -> str | None:
    """What whoever hears this model must know, or None."""
    return NANO_NOTICE if Path(spec.path) == NANO_PATH else None
