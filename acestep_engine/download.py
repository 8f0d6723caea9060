"""What the published ACE-Step-v1-3.5B checkpoint is made of, and how one process at a time fills a folder with it.

A file arrives as a part in `.download/` inside the folder, named by its digest, and moves to its place when it is what
was published. The lyric vocabulary, which is published elsewhere, moves last: where it is, the folder is complete.
"""

import fcntl
import fnmatch
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from acestep_engine.checkpoint import COMPONENT_PARTS, COMPONENTS, LYRIC_VOCABULARY, missing_parts
from acestep_engine.errors import CheckpointNotFoundError, DownloadError
from acestep_engine.hub import AGAIN, RemoteFile, Server, open_client, readable, size_of

logger = logging.getLogger(__name__)

WORK_FOLDER = ".download"
REPOSITORY = "ACE-Step/ACE-Step-v1-3.5B"
VOCABULARY_BYTES = 364_005
VOCABULARY_SHA256 = "c2a66ea48c478c0bb9acb5497144b926acdeaa37128faa799508d40f2b9cc558"

# What a component is read from. No pickles: opening one can run code.
WANTED = re.compile(rf"({'|'.join(COMPONENTS)})/(\w[\w.-]*\.(safetensors|json)|spiece\.model)", re.ASCII)


@dataclass(frozen=True)
class Source:
    """Where the checkpoint is published. `token` goes to the hub only.

    What fails and may pass is tried again after each of `waits_s`.
    """

    endpoint: str = "https://huggingface.co"
    token: str | None = field(default=None, repr=False)
    vocabulary_url: str = (
        "https://raw.githubusercontent.com/ace-step/ACE-Step/d612523f50e252c0e138e68ae75b06223f96e934"
        "/acestep/models/lyrics_utils/vocab.json"
    )
    waits_s: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0)

    @classmethod
    def from_environment(cls) -> Self:
        """The published place, with HF_ENDPOINT and HF_TOKEN. Raises DownloadError if HF_HUB_OFFLINE forbids it."""
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
            raise DownloadError("HF_HUB_OFFLINE forbids a download: unset it, or copy a checkpoint folder here by hand")
        endpoint = (os.environ.get("HF_ENDPOINT") or cls.endpoint).rstrip("/")
        if not endpoint.startswith(("http://", "https://")):
            raise DownloadError(f"HF_ENDPOINT is {endpoint!r}, which is no http:// or https:// address: set it right")
        token = os.environ.get("HF_TOKEN", "").strip()
        if not re.fullmatch(r"[!-~]*", token):  # an HTTP library's own error would repeat it
            raise DownloadError("HF_TOKEN holds characters that no token has: set it right, or unset it")
        return cls(endpoint=endpoint, token=token or None)


def ensure_checkpoint(folder: Path, *, download: bool, source: Source | None = None) -> None:
    """Return once `folder` is complete, downloading if `download`. Of several processes one downloads, others wait.

    Nothing is asked of the network if the folder is complete already.
    Raises CheckpointNotFoundError if it is not and `download` is false, else as `download_checkpoint` does.
    """
    missing = missing_parts(folder)
    if not missing:
        return
    if not download:
        raise CheckpointNotFoundError(
            f"the checkpoint folder {folder} lacks {', '.join(missing)}: "
            "run `acestep-serve download`, or set `download: true`"
        )
    source = source or Source.from_environment()
    with _one_at_a_time(folder):
        if missing_parts(folder):
            _download(folder, source)


def download_checkpoint(folder: Path, *, source: Source | None = None) -> None:
    """Make `folder` equal to what is published now. Files that are there already are verified, and kept if they match.

    `source` defaults to the published place as the environment modifies it. An interrupted call leaves its parts for
    the next one. Raises DownloadError, whose sentence says what to do next.
    """
    source = source or Source.from_environment()
    with _one_at_a_time(folder):
        _download(folder, source)


def _download(folder: Path, source: Source) -> None:
    check = "check the network and the proxy"
    by_hand = f"save {source.vocabulary_url} by hand as {LYRIC_VOCABULARY} in {folder}"
    vocabulary = RemoteFile(LYRIC_VOCABULARY, source.vocabulary_url, VOCABULARY_BYTES, VOCABULARY_SHA256)
    work = folder / WORK_FOLDER

    with open_client() as client:
        hub = Server(client, f"{check}, HF_ENDPOINT and HF_TOKEN", source.waits_s, source.token)
        files = _list_files(hub, source.endpoint)
        parts = {file: work / f"{file.digest}.part" for file in files if not file.matches(folder / file.path)}
        remaining = sum(file.size - size_of(part) for file, part in parts.items())
        logger.info(
            "%s: %d of %d files to fetch, %s, to %s", REPOSITORY, len(parts), len(files), readable(remaining), folder
        )
        _check_disk(folder, remaining)

        marker, draft = folder / vocabulary.path, work / f"{vocabulary.digest}.part"
        if vocabulary.matches(marker):
            marker.replace(draft)
        marker.unlink(missing_ok=True)  # until it is back, the folder is not complete
        Server(client, f"{check}, or {by_hand}", source.waits_s).fetch(vocabulary, draft)  # what is small fails early
        for file, part in parts.items():
            hub.fetch(file, part)
            target = folder / file.path
            target.parent.mkdir(exist_ok=True)
            part.replace(target)
        draft.replace(marker)

    for stale in work.glob("*.part"):
        stale.unlink()
    logger.info("the checkpoint in %s is complete", folder)


def _list_files(hub: Server, endpoint: str) -> list[RemoteFile]:
    """The files of the newest commit that make up a checkpoint."""
    answer = hub.read(f"{endpoint}/api/models/{REPOSITORY}?blobs=true", f"the list of {REPOSITORY}")
    try:
        listing = json.loads(answer)
        folder = f"{endpoint}/{REPOSITORY}/resolve/{listing['sha']}"
        files = [_listed(entry, folder) for entry in listing["siblings"] if WANTED.fullmatch(entry["rfilename"])]
    except (ValueError, KeyError, TypeError):
        raise DownloadError(
            f"the list of {REPOSITORY} is not as a Hugging Face hub writes it: {hub.advice}, then {AGAIN}"
        ) from None
    paths = [file.path for file in files]
    missing = [part for part in COMPONENT_PARTS if not fnmatch.filter(paths, part)]
    if missing:
        raise DownloadError(
            f"{REPOSITORY} on this hub lacks {', '.join(missing)}: "
            "check HF_ENDPOINT, or whether a newer version of this software is out"
        )
    return files


def _listed(entry: dict[str, Any], folder: str) -> RemoteFile:
    """Large files are listed with a sha256, small ones with their git blob id."""
    path, lfs = entry["rfilename"], entry.get("lfs")
    size, digest = (lfs["size"], lfs["sha256"]) if lfs else (entry["size"], entry["blobId"])
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", digest):  # it names a file here
        raise ValueError(digest)
    return RemoteFile(path, f"{folder}/{path}", int(size), digest)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, between processes and threads of this machine.

    An OSError inside is about the disk (the network's are httpx errors): raised as DownloadError.
    """
    lock = folder / WORK_FOLDER / "lock"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("w") as handle:  # closing it releases the lock
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("another process downloads to %s: waiting for it", folder)
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise DownloadError(
            f"cannot write the checkpoint to {folder} ({error.strerror or error}): "
            f"make room there or set `checkpoint_dir` to a place that can be written, then {AGAIN}"
        ) from None


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"{folder} has {readable(free)} free, {readable(needed)} are still needed: "
            f"make room there or set `checkpoint_dir` to another disk, then {AGAIN}"
        )
