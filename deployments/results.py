"""Files of the jobs: sources, results and latents under the state folder, saved songs under the output folder.

Plain blocking functions; the JobManager calls them in threads. Every file appears complete or not at all.
"""

import itertools
import json
import math
import os
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save

from acestep_engine.params import AudioFormat, file_extension
from acestep_engine.requests import Latents
from deployments.messages import (
    ByteArray,
    EarlierSong,
    SongResult,
    Source,
    SourceGoneError,
    Upload,
    published_form,
    request_of_song,
)
from deployments.store.protocol import JobRow

LATENTS_SUFFIX = ".safetensors"
SAME_TIME_S = 2.0  # some file systems round the time of a change, and so do backups
LATENT_SPACE = "latent_space"  # what the files of latents call it; older ones say nothing


@dataclass(frozen=True)
class Folders:
    """Where files go, absolute. `shown_output` is the output folder as it was configured, for what clients read."""

    state: Path
    output: Path
    shown_output: str

    @property
    def store(self) -> Path:
        return self.state / "jobs.sqlite3"


@dataclass(frozen=True)
class Kept:
    """The results and latents of one job, or an upload: by name, as `source_name` has it, when each was written or used
    last.
    """

    request_id: str | None  # None: an upload
    files: Mapping[str, int]  # in nanoseconds
    nbytes: int
    freed_bytes: int  # by removing it; what is saved in the output folder stays there


def source_name(source: Source) -> str:
    """What a source is called: its file under the state folder."""
    if isinstance(source, Upload):
        return upload_name(source.digest)
    return f"latents/{source.request_id}_{source.index}{LATENTS_SUFFIX}"


def upload_name(digest: str) -> str:
    return f"sources/{digest}"


class JobFiles:
    """The files of every job. Methods raise OSError when the disk cannot be written.

    Results and latents are kept for a time after they were written. So are sources, after they were last used: uploads,
    by their content, and the latents of earlier songs.
    """

    def __init__(self, folders: Folders) -> None:
        self._state = folders.state
        self._output = folders.output
        self._shown_output = folders.shown_output.rstrip("/")
        self._results = folders.state / "results"
        self._latents = folders.state / "latents"
        self._sources = folders.state / "sources"
        self._removing = threading.Lock()  # no file may be removed while somebody begins to need it
        self.kept_bytes = 0  # of results, latents and uploads, about: as counted last, and what was written since
        for folder in (self._results, self._latents, self._sources):
            folder.mkdir(parents=True, exist_ok=True)
        for folder in (self._results, self._latents, self._sources, self._output):
            for left_over in folder.glob(".*.tmp"):  # of a process that died while writing
                left_over.unlink(missing_ok=True)

    def keep_source(self, source: Source) -> str:
        """Have a source on the disk for as long as a result is kept from now on: its name.

        Raises SourceGoneError for an earlier song whose latents are no longer there.
        """
        name = source_name(source)
        if isinstance(source, Upload) and not self.use_source(name):
            _write(self._state / name, source.content.data)
            self.kept_bytes += source.content.nbytes
        elif isinstance(source, EarlierSong) and not self.use_source(name):
            raise SourceGoneError(f"song {source.index} of {source.request_id}")
        return name

    def use_source(self, name: str) -> bool:
        """Begin anew the time for which a source is kept. False if it is not there."""
        try:
            with self._removing:
                os.utime(self._state / name)
        except FileNotFoundError:
            return False
        return True

    def read_source(self, name: str) -> ByteArray | Latents:
        """An audio file, or latents. Raises FileNotFoundError."""
        path = self._state / name
        if path.suffix == LATENTS_SUFFIX:
            latents: Latents = load_file(path)["latents"]
            return latents
        return np.fromfile(path, dtype=np.uint8)

    def latent_space(self, name: str) -> str:
        """Return the id of the space that a source's latents lie in; empty for audio, and for latents without one.

        Raises FileNotFoundError, SafetensorError.
        """
        if not name.endswith(LATENTS_SUFFIX):
            return ""
        with safe_open(self._state / name, framework="numpy") as file:
            return str((file.metadata() or {}).get(LATENT_SPACE, ""))

    def read_upload(self, digest: str) -> ByteArray:
        """Raises FileNotFoundError."""
        return np.fromfile(self._state / upload_name(digest), dtype=np.uint8)

    def write_latents(self, request_id: str, index: int, latents: Latents, latent_space: str = "") -> None:
        """Keep the latents of a song, with the space that they lie in. They are on the disk when this returns."""
        content = save({"latents": np.ascontiguousarray(latents)}, {LATENT_SPACE: latent_space})
        _write(self._state / source_name(EarlierSong(request_id, index)), content)
        self.kept_bytes += len(content)

    def write_audio(self, request_id: str, index: int, audio_format: AudioFormat, audio: ByteArray) -> None:
        """Keep the encoded audio of a song. It is on the disk when this returns."""
        _write(self._result(request_id, index, audio_format), audio.data)
        self.kept_bytes += audio.nbytes

    def read_audio(
        self,
        request_id: str,
        index: int,
        audio_format: AudioFormat,
        start: int = 0,
        most: int = -1,
        result: SongResult | None = None,
    ) -> ByteArray:
        """Return the encoded audio from byte `start` on, `most` bytes or all.

        Raises FileNotFoundError once it is removed, and once the saved file, which may be the same as that of `result`,
        was changed in place: the song as it was made is no longer there then.
        """
        with self._result(request_id, index, audio_format).open("rb") as file:
            if result is not None and result.shared_mtime:
                status = os.fstat(file.fileno())
                changed = abs(status.st_mtime - result.shared_mtime) > SAME_TIME_S
                if changed or status.st_size != result.audio_bytes:
                    raise FileNotFoundError(f"{file.name} was edited")
            return np.fromfile(file, dtype=np.uint8, count=most, offset=start)

    def discard(self, row: JobRow) -> None:
        """Remove every file of a job that did not complete, but its source: others may use it."""
        for index in range(len(row.songs)):
            (self._state / source_name(EarlierSong(row.request_id, index))).unlink(missing_ok=True)
            self._result(row.request_id, index, row.audio_format).unlink(missing_ok=True)
        for name in row.output_paths:
            self.remove_output(name)

    def remove_old(self, before: float, needed: Container[str]) -> None:
        """Remove what was written, or used as a source, before that time, but no source in `needed`."""
        for folder in (self._results, self._latents, self._sources):
            for path in folder.iterdir():
                with self._removing, suppress(FileNotFoundError):  # half written, it got its name; or a job ended
                    if path.stat().st_mtime < before and f"{folder.name}/{path.name}" not in needed:
                        path.unlink()

    def shortage_bytes(self, reserve: float, reserve_bytes: int | None, with_output: bool) -> int:
        """Return how many bytes less are free than are to stay free; 0 or less: there is room.

        That is the share `reserve` of the disk, or `reserve_bytes` where that is less.
        Looks at the disk of the state folder, and `with_output` at that of the output folder too.
        """
        folders = [self._state, self._output] if with_output else [self._state]
        usages = [shutil.disk_usage(_nearest_folder(folder)) for folder in folders]
        most = math.inf if reserve_bytes is None else reserve_bytes
        return max(int(min(reserve * usage.total, most)) - usage.free for usage in usages)

    def kept(self) -> list[Kept]:
        """Return all jobs that have results or latents, and all uploads, in the order in which they were written."""
        sizes: dict[str, int] = defaultdict(int)
        freed: dict[str, int] = defaultdict(int)
        files: dict[str, dict[str, int]] = defaultdict(dict)
        written: dict[str, int] = {}
        for folder in (self._latents, self._results):  # in this order: latents look newer when they were used
            for entry in os.scandir(folder):
                with suppress(FileNotFoundError):
                    status = entry.stat()
                    if not entry.name.startswith("."):
                        request_id = entry.name.rpartition("_")[0]
                        sizes[request_id] += status.st_size
                        freed[request_id] += status.st_size if status.st_nlink == 1 else 0
                        files[request_id][f"{folder.name}/{entry.name}"] = status.st_mtime_ns
                        written[request_id] = status.st_mtime_ns
        kept = [(written[one], Kept(one, files[one], sizes[one], freed[one])) for one in files]
        for entry in os.scandir(self._sources):
            with suppress(FileNotFoundError):
                status = entry.stat()
                if not entry.name.startswith("."):
                    used = {upload_name(entry.name): status.st_mtime_ns}
                    kept.append((status.st_mtime_ns, Kept(None, used, status.st_size, status.st_size)))
        self.kept_bytes = sum(one.nbytes for _, one in kept)
        return [one for _, one in sorted(kept, key=lambda one: (one[0], sorted(one[1].files)))]

    def remove(self, kept: Iterable[Kept]) -> None:
        """Remove these files, but none that was used since."""
        for one in kept:
            for name, used_at in one.files.items():
                with self._removing, suppress(FileNotFoundError):
                    if (self._state / name).stat().st_mtime_ns == used_at:
                        (self._state / name).unlink()
            self.kept_bytes -= one.nbytes

    def claim_outputs(self, audio_format: AudioFormat, at: float, count: int) -> tuple[str, ...]:
        """Take so many file names in the output folder that nobody has: `output_YYYYMMDDHHMMSS_N.<extension>`."""
        self._output.mkdir(parents=True, exist_ok=True)
        stamp = time.strftime("%Y%m%d%H%M%S", time.localtime(at))
        names = (f"output_{stamp}_{index}.{file_extension(audio_format)}" for index in itertools.count())
        return tuple(itertools.islice(filter(self._claim, names), count))

    def _claim(self, name: str) -> bool:
        """Its parameters' file is made first and belongs to it alone, so that two formats never share a number."""
        if not _create(self._sidecar(name)):
            return False
        if _create(self._output / name):
            return True
        self._sidecar(name).unlink()
        return False

    def save_song(self, row: JobRow, index: int, result: SongResult) -> SongResult:
        """Fill a claimed file with a song, write its parameters beside it, and return the result with its path.

        The saved file is the kept one under a second name where the disk allows it, and else a copy.
        """
        name = row.output_paths[index]
        path = f"{self._shown_output}/{name}"
        request = request_of_song(row.request_json, row.songs[index])
        published = published_form(request, replace(result, audio_path=path))
        _write(self._sidecar(name), json.dumps(published, ensure_ascii=False, indent=2).encode())
        kept = self._result(row.request_id, index, row.audio_format)
        shared = _link(self._output / name, kept)
        if not shared:
            _write(self._output / name, self.read_audio(row.request_id, index, row.audio_format).data)
        return replace(result, audio_path=path, shared_mtime=kept.stat().st_mtime if shared else 0.0)

    def remove_output(self, name: str) -> None:
        """Give up a claimed file."""
        (self._output / name).unlink(missing_ok=True)
        self._sidecar(name).unlink(missing_ok=True)

    def _result(self, request_id: str, index: int, audio_format: AudioFormat) -> Path:
        return self._results / f"{request_id}_{index}.{file_extension(audio_format)}"

    def _sidecar(self, name: str) -> Path:
        return self._output / f"{Path(name).stem}_input_params.json"


def _create(path: Path) -> bool:
    """Make an empty file; False if there is one."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except FileExistsError:
        return False
    return True


def _nearest_folder(path: Path) -> Path:
    """Return the folder, or the nearest one above it that is there."""
    return next((folder for folder in (path, *path.parents) if folder.is_dir()), Path("/"))


def _link(path: Path, kept: Path) -> bool:
    """Make `path` another name of a file that is on the disk. False where the disk does not allow it."""
    temporary = path.with_name(f".{path.name}.{threading.get_ident()}.tmp")
    try:
        os.link(kept, temporary)
        try:
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)  # it is still there if `path` was that file already
    except OSError:  # of another disk, or of a kind without links
        return False
    _sync_folder(path.parent)
    return True


def _write(path: Path, content: bytes | memoryview) -> None:
    """Fill a temporary file beside `path`, bring it to the disk and give it its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{threading.get_ident()}.tmp")  # two may write the same upload
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
