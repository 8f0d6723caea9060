"""The adapter that a request names, and the place of one that is to be registered."""

import re
from pathlib import Path

from acestep_engine.params import Adapter, GenerationParams
from serve_app.fields import NO_ADAPTER, InvalidRequestError, invalid
from serve_app.printable import show
from serve_app.schemas import GenerateRequest
from serve_app.service import Service

FIELD = "lora_name_or_path"
DIGEST = re.compile(r"[0-9a-f]{16,64}")
DIGEST_LETTERS = 16  # as many as params_json names


async def find_adapter(service: Service, asked: GenerateRequest, song: GenerationParams | None) -> Adapter | None:
    """The adapter as it is registered now: the one asked for, else that of the earlier `song` it begins from.

    Raises InvalidRequestError, which lists the names that there are.
    """
    wanted, weight = asked.lora_name_or_path, asked.lora_weight
    if song is not None and song.adapter is not None and FIELD not in asked.model_fields_set:
        wanted = name_of(song.adapter)
        weight = weight if "lora_weight" in asked.model_fields_set else song.adapter.weight
    if wanted == NO_ADAPTER:
        return None
    name, at, digest = wanted.partition("@")
    registered = {info.name: info for info in await service.job_manager.loras()}
    info = registered.get(name)
    if info is None:
        names = ", ".join([NO_ADAPTER, *registered])
        raise invalid(FIELD, f"{show(name)} is not a registered adapter; there are {names}")
    if at and (DIGEST.fullmatch(digest) is None or not info.digest.startswith(digest)):
        registered_as = f"{name}@{info.digest[:DIGEST_LETTERS]}"
        raise invalid(FIELD, f"{show(wanted)} is not what is registered, which is {registered_as}")
    return Adapter(info.name, info.digest, info.path, weight)


def name_of(adapter: Adapter) -> str:
    """How the request for the same music again names it: it is refused once the name means other content."""
    return f"{adapter.name}@{adapter.digest[:DIGEST_LETTERS]}"


def confined_path(root: Path | None, name: str) -> Path:
    """What `name` is under `root`, with all links followed.

    Raises InvalidRequestError, with the same words whether or not there is something at a forbidden place.
    """
    if root is None:
        raise invalid("path", "names an adapter, but the operator has not configured a folder for them (lora_root)")
    parts = name.rstrip("/").split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in name or ":" in name:
        raise _no_such_adapter()
    try:
        path = root.joinpath(*parts).resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: links in a circle
        raise _no_such_adapter() from None
    if not path.is_relative_to(root.resolve()):
        raise _no_such_adapter()
    return path


def _no_such_adapter() -> InvalidRequestError:
    return invalid("path", "is not the relative path of an adapter under the server's folder for adapters")
