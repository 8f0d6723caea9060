"""The JSON files of a checkpoint folder. No torch."""

import json
from pathlib import Path
from typing import Any

from acestep_engine.errors import CheckpointError, CheckpointNotFoundError


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a component's folder. Raises CheckpointError if it is missing or no JSON object."""
    return read_json_object(folder / "config.json")


def read_json_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointNotFoundError(f"{label(file)} does not exist") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{label(file)} is no valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{label(file)} holds {type(content).__name__}, expected a JSON object")
    return content


def label(path: Path) -> str:
    """Folder and name: what a person needs to find the file, without the layout of the server's disk."""
    return f"{path.parent.name}/{path.name}" if path.parent.name else path.name
