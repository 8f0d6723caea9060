"""Sound files made of chunks (WAV, RF64, BW64, Wave64, AIFF) and AU, written anew with lengths that are right.

Writers that stream, or that were stopped, leave 0, the highest number or an old length in a header. What counts is the
sound that is there. The decoder gets a small header that says so, and none of the other chunks.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from acestep_engine.errors import AudioError

UNKNOWN_SIZE = 0xFFFFFFFF
MAX_CHUNKS = 4096
MAX_LAYOUT_BYTES = 4096  # of the chunk that describes the samples
MAX_LOST_BYTES = 64 * 1024  # searched for the sound where a chunk's length leads nowhere
WAVE64_MAGIC = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
WAVE64_TAIL = b"\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"  # behind the four letters of every other name

MP3_IN_WAV = 0x55


@dataclass(frozen=True)
class _Chunk:
    """A chunk: its four letters, where its content begins, and its length as it says."""

    name: bytes
    start: int
    size: int


class _Riff:
    """The chunks of RIFF and FORM files: four letters and 32 bits of length, padded to an even length."""

    header_bytes = 8
    align = 2

    def __init__(self, byte_order: str) -> None:
        self._layout = f"{byte_order}4sI"

    def chunk(self, content: memoryview, position: int) -> _Chunk | None:
        """Return the chunk whose header stands at `position`; None if what is there is no header."""
        if position + self.header_bytes > len(content):
            return None
        name, size = struct.unpack_from(self._layout, content, position)
        return _Chunk(name, position + self.header_bytes, size) if _is_name(name) else None


class _Wave64:
    """The chunks of Wave64 files: names of 16 bytes and 64 bits of length, header included, padded to 8 bytes."""

    header_bytes = 24
    align = 8

    def chunk(self, content: memoryview, position: int) -> _Chunk | None:
        if position + self.header_bytes > len(content):
            return None
        name, tail, size = struct.unpack_from("<4s12sQ", content, position)
        known = tail == WAVE64_TAIL and _is_name(name)
        return _Chunk(name, position + self.header_bytes, max(0, size - self.header_bytes)) if known else None


_Form = _Riff | _Wave64


def plain_wav(content: memoryview) -> tuple[bytes, memoryview, int]:
    """Return the header, the sound and the format tag of a WAV, RF64, BW64 or Wave64 file.

    Raises AudioError if it does not say how its samples are laid out, or has no sound.
    """
    magic = bytes(content[:4])
    form: _Form = _Wave64() if magic == b"riff" else _Riff(">" if magic == b"RIFX" else "<")
    order = ">" if magic == b"RIFX" else "<"
    first = 40 if magic == b"riff" else 12
    layout, sound, size_64 = None, None, None
    for chunk in _chunks(content, form, first, b"data"):
        if chunk.name == b"ds64" and chunk.start + 16 <= len(content):
            (size_64,) = struct.unpack_from("<Q", content, chunk.start + 8)
        elif chunk.name == b"fmt " and layout is None:
            layout = _described(content, chunk, least=16)
        elif chunk.name == b"data" and not sound:
            size = size_64 if chunk.size == UNKNOWN_SIZE and size_64 is not None else chunk.size
            sound = content[chunk.start : _sound_end(content, form, chunk.start, size)]
    if layout is None or sound is None:
        raise AudioError(f"the WAV file is broken: it has no {'fmt' if layout is None else 'data'} chunk")
    (tag,) = struct.unpack_from(f"{order}H", layout)
    chunks = b"WAVEfmt " + struct.pack(f"{order}I", len(layout)) + layout + bytes(len(layout) % 2)
    chunks += b"data" + _size(order, len(sound))
    riff = b"RIFX" if magic == b"RIFX" else b"RIFF"
    return riff + _size(order, len(chunks) + len(sound)) + chunks, sound, tag


def plain_aiff(content: memoryview) -> tuple[bytes, memoryview]:
    """Return the header and the sound of an AIFF or AIFF-C file. Raises AudioError as `plain_wav` does."""
    form = _Riff(">")
    layout, sound = None, None
    for chunk in _chunks(content, form, 12, b"SSND"):
        if chunk.name == b"COMM" and layout is None:
            layout = _described(content, chunk, least=18)
        elif chunk.name == b"SSND" and not sound and chunk.start + 8 <= len(content):
            (offset,) = struct.unpack_from(">I", content, chunk.start)
            end = _sound_end(content, form, chunk.start + 8, max(0, chunk.size - 8))
            sound = content[chunk.start + 8 + offset : end]
    if layout is None or sound is None:
        raise AudioError(f"the AIFF file is broken: it has no {'COMM' if layout is None else 'SSND'} chunk")
    chunks = bytes(content[8:12]) + b"COMM" + struct.pack(">I", len(layout)) + layout + bytes(len(layout) % 2)
    chunks += b"SSND" + _size(">", 8 + len(sound)) + bytes(8)
    return b"FORM" + _size(">", len(chunks) + len(sound)) + chunks, sound


def plain_au(content: memoryview) -> tuple[bytes, memoryview]:
    """Return the header and the sound of an AU file, which has no chunks. Raises AudioError if there is no header."""
    if len(content) < 24:
        raise AudioError("the AU file is broken: it ends within its header")
    offset, size, *layout = struct.unpack_from(">5I", content, 4)
    start = max(24, offset)
    end = start + size if 0 < size < len(content) - start <= 2 * size else len(content)
    sound = content[start:end]
    return struct.pack(">4s5I", b".snd", 24, min(len(sound), UNKNOWN_SIZE), *layout), sound


def _chunks(content: memoryview, form: _Form, position: int, sound: bytes) -> Iterator[_Chunk]:
    """Yield the chunks from `position` on. Where a length leads to no chunk, go on at the next one called `sound`."""
    chunk = form.chunk(content, position)
    for _ in range(MAX_CHUNKS):
        if chunk is None:
            return
        yield chunk
        behind = chunk.start + chunk.size
        following = form.chunk(content, behind + -chunk.size % form.align) or form.chunk(content, behind)
        if following is None and chunk.name != sound:
            searched = bytes(content[chunk.start : chunk.start + MAX_LOST_BYTES])
            found = searched.find(sound)
            following = form.chunk(content, chunk.start + found) if found >= 0 else None
        chunk = following


def _described(content: memoryview, chunk: _Chunk, least: int) -> bytes | None:
    """Return a chunk that describes the samples; None if it is cut off. A length that cannot be is taken as `least`."""
    size = chunk.size if least <= chunk.size <= MAX_LAYOUT_BYTES else least
    layout = bytes(content[chunk.start : chunk.start + size])
    return layout if len(layout) >= least else None


def _sound_end(content: memoryview, form: _Form, start: int, size: int) -> int:
    """Return where a sound of `size` bytes ends, by what the file says and by what is there.

    The length is believed if it leads to another chunk, or if it covers more than what is left over behind it.
    """
    end, there = start + size, len(content)
    if end >= there or any(_fits(content, form, place) for place in (end + -size % form.align, end)):
        return min(end, there)
    return end if there - end <= size else there


def _fits(content: memoryview, form: _Form, position: int) -> bool:
    """Return whether a chunk stands at `position` and is all there."""
    chunk = form.chunk(content, position)
    return chunk is not None and chunk.start + chunk.size <= len(content)


def _is_name(name: bytes) -> bool:
    return all(0x20 <= byte < 0x7F for byte in name)


def _size(byte_order: str, size: int) -> bytes:
    return struct.pack(f"{byte_order}I", min(size, UNKNOWN_SIZE))
