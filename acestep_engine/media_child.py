"""Decodes one media file in a process of its own: the file on standard input, its samples on standard output.

The decoder is a large library of C that reads what strangers send. Here it cannot take the server down, its memory and
its time are bounded, and once the file was read it can open no other file and no socket. Standard output gets one line
of JSON (`channels` and `sample_rate_hz`, or `error`), then 32-bit floats, all channels of one sample after another.

Run as a script, `media_child.py DEMUXER`. It imports nothing of this package.
"""

import importlib
import io
import json
import pkgutil
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any

MAX_MEMORY_BYTES = 256 * 1024 * 1024  # beside what is in use once the file was read
MAX_CPU_S = 60
MAX_WAIT_S = 300  # from the file's last byte on
MAX_BAD_PACKETS = 100  # in a row
EXIT_NO_DECODER = 3  # the library is missing

# Decoders of sound only. A video stream is never decoded, not even to find out what it is.
CODECS = (
    "aac,alac,flac,mp3float,mp3,opus,vorbis,speex,amrnb,amrwb,ac3,eac3,adpcm_ima_qt,pcm_alaw,pcm_mulaw,pcm_u8,pcm_s8,"
    "pcm_s16le,pcm_s16be,pcm_s24le,pcm_s24be,pcm_s32le,pcm_s32be,pcm_f32le,pcm_f32be,pcm_f64le,pcm_f64be"
)
OPTIONS = {
    "codec_whitelist": CODECS,
    "protocol_whitelist": "none",
    "probesize": str(4 * 1024 * 1024),
    "analyzeduration": str(5_000_000),  # microseconds
}
MOV_OPTIONS = {"enable_drefs": "0", "use_absolute_path": "0"}  # tracks whose samples are in another file

BROKEN = "is broken or encoded in a way that is not supported"


class MediaError(Exception):
    """The file cannot be decoded; the message says why."""


def main(demuxer: str) -> int:
    """Decode standard input and return the exit status: 0 if all that follows the first line is the whole sound."""
    try:
        import av
    except ImportError:
        return EXIT_NO_DECODER
    av.logging.set_level(av.logging.PANIC)
    _import_all_of(av)
    file, out = io.BytesIO(sys.stdin.buffer.read()), sys.stdout.buffer
    _give_up_rights()
    try:
        _decode(av, file, demuxer, out)
    except BrokenPipeError:
        return 1
    except (MediaError, MemoryError, OSError, ValueError, av.FFmpegError) as error:
        with suppress(BrokenPipeError):
            _say(out, {"error": str(error) if isinstance(error, MediaError) else BROKEN})
        return 1
    return 0


def _import_all_of(av: Any) -> None:
    """Import what the library would import when it needs it: later no file can be opened."""
    for module in pkgutil.walk_packages(av.__path__, "av."):
        if not module.name.endswith(("__main__", "datasets")):
            importlib.import_module(module.name)


def _give_up_rights() -> None:
    """Bound what this process can take from now on."""
    with suppress(OSError), open("/proc/self/statm") as pages:  # not everywhere; there, memory is not bounded
        in_use_bytes = int(pages.read().split()[0]) * resource.getpagesize()
        _bound(resource.RLIMIT_AS, in_use_bytes + MAX_MEMORY_BYTES)
    _bound(resource.RLIMIT_CPU, MAX_CPU_S)
    signal.alarm(MAX_WAIT_S)
    _bound(resource.RLIMIT_CORE, 0)
    _bound(resource.RLIMIT_NOFILE, 0)


def _bound(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (most, most))


def _decode(av: Any, file: IO[bytes], demuxer: str, out: IO[bytes]) -> None:
    options = OPTIONS | {"format_whitelist": demuxer} | (MOV_OPTIONS if demuxer == "mov" else {})
    with av.open(file, "r", format=demuxer, container_options=options, io_open=_open_nothing) as container:
        stream = container.streams.best("audio")
        if stream is None:
            raise MediaError("holds no sound")
        if stream.codec_context is None or stream.codec_context.codec.name not in CODECS.split(","):
            raise MediaError(BROKEN)
        stream.codec_context.thread_count = 1
        first, last_layout = None, None
        resampler: Any = None
        for frame in _frames(av, container, stream):
            if first is None:
                first = frame
                _say(out, {"channels": frame.layout.nb_channels, "sample_rate_hz": frame.sample_rate})
            layout = (frame.format.name, frame.layout.name, frame.sample_rate)
            if layout != last_layout:
                resampler = av.AudioResampler("flt", first.layout, first.sample_rate)
                last_layout = layout
            for converted in resampler.resample(frame):
                nbytes = 4 * converted.samples * first.layout.nb_channels
                out.write(memoryview(converted.planes[0])[:nbytes])
        if first is None:
            raise MediaError("holds no samples")
        out.flush()


def _frames(av: Any, container: Any, stream: Any) -> Iterator[Any]:
    """Yield the frames of a stream, as far as they are there. Packets that cannot be decoded are left out."""
    bad = 0
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:  # cut off
            return
        if packet is None:
            return
        try:
            yield from packet.decode()
            bad = 0
        except av.FFmpegError as error:
            bad += 1
            if bad > MAX_BAD_PACKETS or isinstance(error, MemoryError):
                raise


def _open_nothing(*_: Any) -> None:
    raise PermissionError("a media file may not name other files")


def _say(out: IO[bytes], line: dict[str, Any]) -> None:
    out.write(json.dumps(line).encode() + b"\n")
    out.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
