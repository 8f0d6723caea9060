"""Files of the jobs: sources, results and latents under the state folder, saved songs under the output folder.

Plain blocking functions; the JobManager calls them in threads. Every file appears complete or not at all.
"""

import itertools
import json
import os
import time
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from acestep_engine.params import AudioFormat
from deployments.messages import ByteArray
from deployments.store.protocol import JobRow


@dataclass(frozen=True)
class Folders:
    """Where files go, absolute. `shown_output` is the output folder as it was configured, for what clients read."""

    state: Path
    output: Path
    shown_output: str

    @property
    def store(self) -> Path:
        return self.state / "jobs.sqlite3"


class JobFiles:
    """The files of every job. Methods raise OSError when the disk cannot be written."""

    def __init__(self, folders: Folders) -> None:
        self._output = folders.output
        self._shown_output = folders.shown_output.rstrip("/")
        self._results = folders.state / "results"
        self._latents = folders.state / "latents"
        self._sources = folders.state / "sources"
        for folder in (self._results, self._latents, self._sources):
            folder.mkdir(parents=True, exist_ok=True)
        for folder in (self._results, self._latents, self._sources, self._output):
            for left_over in folder.glob(".*.tmp"):  # of a process that died while writing
                left_over.unlink(missing_ok=True)

    def write_source(self, request_id: str, source: ByteArray) -> None:
        """Keep an uploaded file until its job ends. It is on the disk when this returns."""
        _write(self._sources / request_id, source.data)

    def read_source(self, request_id: str) -> ByteArray:
        return np.fromfile(self._sources / request_id, dtype=np.uint8)

    def remove_source(self, request_id: str) -> None:
        (self._sources / request_id).unlink(missing_ok=True)

    def write_latents(self, request_id: str, latents: npt.NDArray[np.float32]) -> None:
        """Keep the latents. They are on the disk when this returns."""
        _write(self._latents / f"{request_id}.safetensors", save({"latents": np.ascontiguousarray(latents)}))

    def write_audio(self, request_id: str, audio_format: AudioFormat, audio: ByteArray) -> None:
        """Keep the encoded audio. It is on the disk when this returns."""
        _write(self._result(request_id, audio_format), audio.data)

    def read_result(self, request_id: str, audio_format: AudioFormat) -> ByteArray:
        """The encoded audio. Raises FileNotFoundError once it is removed."""
        return np.fromfile(self._result(request_id, audio_format), dtype=np.uint8)

    def remove_result(self, request_id: str, audio_format: AudioFormat) -> None:
        """Remove audio and latents of one job."""
        (self._latents / f"{request_id}.safetensors").unlink(missing_ok=True)
        self._result(request_id, audio_format).unlink(missing_ok=True)

    def discard(self, row: JobRow) -> None:
        """Remove every file of a job that did not complete."""
        self.remove_source(row.request_id)
        self.remove_result(row.request_id, row.audio_format)
        if row.output_path is not None:
            self.remove_output(row.output_path)

    def remove_results(self, written_before: float) -> None:
        """Remove the audio and latents of all jobs that ended before that time."""
        for folder in (self._results, self._latents):
            for path in folder.iterdir():
                if path.stat().st_mtime < written_before:
                    path.unlink(missing_ok=True)

    def remove_sources_except(self, request_ids: Container[str]) -> None:
        """Remove the sources of all other jobs: those of jobs that ended in a process that then died."""
        for path in self._sources.iterdir():
            if path.name not in request_ids:
                path.unlink(missing_ok=True)

    def claim_output(self, audio_format: AudioFormat, at: float) -> str:
        """Take a file name in the output folder that nobody has: `output_YYYYMMDDHHMMSS_N.<format>`.

        Its parameters' file is made first and belongs to it alone, so that two formats never share a number.
        """
        self._output.mkdir(parents=True, exist_ok=True)
        stamp = time.strftime("%Y%m%d%H%M%S", time.localtime(at))
        for index in itertools.count():
            name = f"output_{stamp}_{index}.{audio_format}"
            if not _create(self._sidecar(name)):
                continue
            if _create(self._output / name):
                return name
            self._sidecar(name).unlink()
        raise AssertionError("unreachable: the count never ends")

    def write_output(self, name: str, audio: ByteArray, request_json: dict[str, Any]) -> str:
        """Fill a claimed file and write its parameters beside it. What clients are told as its path."""
        text = json.dumps(request_json, ensure_ascii=False, indent=2)
        _write(self._sidecar(name), text.encode())
        _write(self._output / name, audio.data)
        return f"{self._shown_output}/{name}"

    def remove_output(self, name: str) -> None:
        """Give up a claimed file."""
        (self._output / name).unlink(missing_ok=True)
        self._sidecar(name).unlink(missing_ok=True)

    def _result(self, request_id: str, audio_format: AudioFormat) -> Path:
        return self._results / f"{request_id}.{audio_format}"

    def _sidecar(self, name: str) -> Path:
        return self._output / f"{Path(name).stem}_input_params.json"


def _create(path: Path) -> bool:
    """Make an empty file; False if there is one."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except FileExistsError:
        return False
    return True


def _write(path: Path, content: bytes | memoryview) -> None:
    """Fill a temporary file beside `path`, bring it to the disk and give it its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
