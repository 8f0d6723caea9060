"""Decodes what phones and browsers record (M4A, WebM, AAC, ...), if the optional decoder, PyAV, is installed."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from acestep_engine import media_child
from acestep_engine.errors import AudioError
from acestep_engine.kinds import CONVERT_IT, Media, media_are_read

FloatArray = npt.NDArray[np.float32]

MAX_FIRST_LINE_BYTES = 1000


class MediaDecoder:
    """One file in the hands of a process that decodes it. `channels` and `sample_rate_hz` are the file's."""

    def __init__(self, kind: Media, process: "subprocess.Popen[bytes]", samples: IO[bytes]) -> None:
        self._process = process
        self._samples = samples
        self._this_is = f"this is {kind.name}, but it"
        match first := _first_line(samples):
            case {"channels": int(channels), "sample_rate_hz": int(rate_hz)} if channels > 0:
                self.channels, self.sample_rate_hz = channels, rate_hz
            case _ if not first and process.wait() == media_child.EXIT_NO_DECODER:
                raise _not_read(kind)
            case _:
                raise AudioError(f"{self._this_is} {first.get('error', media_child.BROKEN)}; {CONVERT_IT}")

    def read(self, buffer: FloatArray) -> FloatArray:
        """Fill `buffer` (n, channels) with the next samples and return the part that was filled, none at the end.

        Raises AudioError where the file is broken.
        """
        sample_bytes = 4 * self.channels
        wanted = buffer.view(np.uint8).reshape(-1).data
        filled = 0
        while filled < len(wanted) and (count := self._samples.readinto(wanted[filled:])):  # type: ignore[attr-defined]
            filled += count
        if filled < len(wanted) and self._process.wait() != 0:
            raise AudioError(f"{self._this_is} {media_child.BROKEN}; {CONVERT_IT}")
        return buffer[: filled // sample_bytes]


@contextmanager
def media_decoder(kind: Media, content: memoryview) -> Iterator[MediaDecoder]:
    """Open a media file, which must be all in `content`. Raises AudioError if that fails, or without the decoder."""
    if not media_are_read():
        raise _not_read(kind)
    command = [sys.executable, "-P", str(Path(media_child.__file__)), kind.demuxer]
    environment = {name: value for name, value in os.environ.items() if name in ("LD_LIBRARY_PATH", "PATH", "LANG")}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            _send(process.stdin, content)
            yield MediaDecoder(kind, process, process.stdout)
        finally:
            process.kill()


def _send(pipe: IO[bytes], content: memoryview) -> None:
    """Write a file and close the pipe. A process that has ended early says why in its exit status."""
    with suppress(BrokenPipeError):
        pipe.write(content)
    with suppress(BrokenPipeError):
        pipe.close()


def _first_line(samples: IO[bytes]) -> dict[str, object]:
    """Return what the process says of the file; nothing if it has ended without a word."""
    try:
        said = json.loads(samples.readline(MAX_FIRST_LINE_BYTES))
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _not_read(kind: Media) -> AudioError:
    way_out = f"{CONVERT_IT} (or the server's operator installs what reads it: pip install 'acestep-serve[media]')"
    return AudioError(f"this is {kind.name}, which this server does not read; {way_out}")
