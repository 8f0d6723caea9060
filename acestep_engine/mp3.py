"""MP3 files frame by frame (ISO/IEC 11172-3, 13818-3): what stands around the sound is left out.

Real files begin with padding or junk, were trimmed or joined, or have lost their encoder's summary. The decoder
believes a summary, and without one it guesses the length from the first frame. So it gets the frames alone, behind a
summary that counts them.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from acestep_engine.errors import AudioError, AudioTooLargeError

LAYER_3 = 1
BITRATES_KBPS = {
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
MPEG1_RATES_HZ = (44_100, 48_000, 32_000)
VERSION_BITS = {3: (1, 1), 2: (2, 2), 0: (2, 4)}  # to MPEG version and the divisor of its sample rates (MPEG 2.5: 4)

ID3_HEADER_BYTES = 10
ID3_HAS_FOOTER = 0x10
ID3V1_BYTES = 128
APE_HEADER_BYTES = 32
MAX_TAGS = 8  # files have one or two in a row; a million empty ones would only cost time

HEADER_BYTES = 4
# Every header that `_frame` accepts begins like this. Other places are skipped without a step of Python.
HEADER_START = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb][\x10-\xef]", re.DOTALL)
MAX_GAP_BYTES = 64 * 1024  # of anything but tags and frames in one place
MAX_JUNK_BYTES = 1024 * 1024  # of it in a file

COUNTS_FRAMES, COUNTS_BYTES = 1, 2
SUMMARY_FIELDS = {COUNTS_FRAMES: 4, COUNTS_BYTES: 4, 4: 100, 8: 4}  # flags to bytes, in their order
SUMMARY_HEAD_BYTES = 8
LAME_DELAYS_AT = 21  # after those fields, in LAME's addition: 12 bits of delay, 12 of padding
VBRI_AT = HEADER_BYTES + 32
ROOMY_BITRATE_INDEX = 9  # frames of 240 bytes at least, whatever the sample rate
PADDING_S = 1.0  # encoders add some silence that decoders take off again


@dataclass(frozen=True)
class Frame:
    """One frame's length in bytes, its samples, their rate, and where an encoder's summary would stand in it."""

    length: int
    samples: int
    rate_hz: int
    summary_at: int


@dataclass(frozen=True)
class _Run:
    """Whole frames without a gap between them, from byte `start` to byte `end`."""

    start: int
    end: int
    frames: int
    first: Frame


def skip_id3(data: memoryview) -> memoryview:
    """Return `data` without the ID3v2 tags at its start. A tag that reaches past the end is left where it is."""
    for _ in range(MAX_TAGS):
        end = _tag_end(data, 0) if bytes(data[:3]) == b"ID3" else None
        if end is None or end >= len(data):
            break
        data = data[end:]
    return data


def holds_mp3(data: memoryview) -> bool:
    """Return whether MP3 frames begin behind the tags at the start, or within 64 KiB after them.

    A part of a frame will do at the very start, one frame behind tags. After anything else it takes three headers in a
    row, or two frames up to the end: two headers are found in one of 40,000 files of random bytes.
    """
    return _find(data, _skip_tags(data, 0), None) is not None or _first_is_cut_off(data)


def read_mp3(data: memoryview, max_duration_s: float) -> bytes:
    """Return the frames of an MP3 file behind a summary that counts them.

    Tags are skipped by their length, and up to 64 KiB of anything else before the first frame or between two. A last
    frame that is cut off is left out. Raises AudioError if there is no whole frame, AudioTooLargeError if the frames
    last longer than the limit.
    """
    runs = list(_runs(data, max_duration_s))
    if runs:
        return b"".join(_summarised([data[run.start : run.end] for run in runs], runs))
    if _first_is_cut_off(data):
        raise AudioError("the MP3 file is cut off in the middle of its first frame")
    raise AudioError("the file holds no MP3 frame that is whole")


def _first_is_cut_off(data: memoryview) -> bool:
    first = _frame(data, 0)
    return first is not None and first.length > len(data)


def _runs(data: memoryview, max_duration_s: float) -> Iterator[_Run]:
    """Yield all runs of frames, of the sample rate of the first one."""
    position, first, junk_bytes, duration_s = 0, None, 0, 0.0
    while junk_bytes <= MAX_JUNK_BYTES:
        position = _skip_tags(data, position)
        start = _find(data, position, first)
        if start is None:
            return
        junk_bytes += start - position
        position, frames = start, 0
        while (frame := _frame(data, position, first)) is not None and position + frame.length <= len(data):
            first = first or frame
            position += frame.length
            frames += 1
            duration_s += frame.samples / frame.rate_hz
            if duration_s > max_duration_s + PADDING_S:
                problem = f"the MP3 file lasts over {duration_s:.1f} s, the limit is {max_duration_s:g} s"
                raise AudioTooLargeError(problem)
        if first is None or not frames:
            return
        yield _Run(start, position, frames, first)


def _find(data: memoryview, position: int, first: Frame | None) -> int | None:
    """Return where the next frames begin, at most `MAX_GAP_BYTES` further on; like `first`, if it is given.

    Without a gap one frame will do, with another, a tag or the end behind it; after a gap two.
    """
    if _chain(data, position, first, 1):
        return position
    candidates = HEADER_START.finditer(data, position, min(len(data), position + MAX_GAP_BYTES))
    return next((found.start() for found in candidates if _chain(data, found.start(), first, 2)), None)


def _chain(data: memoryview, position: int, first: Frame | None, frames: int) -> bool:
    """Return whether so many whole frames stand at `position`, and behind them another one, a tag or the end."""
    for _ in range(frames):
        frame = _frame(data, position, first)
        if frame is None or position + frame.length > len(data):
            return False
        first = first or frame
        position += frame.length
    return (
        position + HEADER_BYTES > len(data)
        or _frame(data, position, first) is not None
        or _tag_end(data, position) is not None
    )


def _frame(data: memoryview, position: int, like: Frame | None = None) -> Frame | None:
    """Return the frame whose header stands at `position`, or None if none does, or one of another kind than `like`."""
    if position + HEADER_BYTES > len(data):
        return None
    header = int.from_bytes(data[position : position + HEADER_BYTES], "big")
    version_bits, layer = header >> 19 & 3, header >> 17 & 3
    bitrate_index, rate_index = header >> 12 & 15, header >> 10 & 3
    if header >> 21 != 0x7FF or layer != LAYER_3 or version_bits not in VERSION_BITS:
        return None
    if bitrate_index in (0, 15) or rate_index == 3:  # 0 is a bit rate that only a search finds, and is never used
        return None
    version, divisor = VERSION_BITS[version_bits]
    rate_hz = MPEG1_RATES_HZ[rate_index] // divisor
    samples = 1152 if version == 1 else 576
    if like is not None and (samples, rate_hz) != (like.samples, like.rate_hz):
        return None
    bitrate = 1000 * BITRATES_KBPS[version][bitrate_index]
    mono = header >> 6 & 3 == 3
    side_info = {(1, False): 32, (1, True): 17, (2, False): 17, (2, True): 9}[version, mono]
    padding = header >> 9 & 1
    return Frame(samples // 8 * bitrate // rate_hz + padding, samples, rate_hz, HEADER_BYTES + side_info)


def _skip_tags(data: memoryview, position: int) -> int:
    """Return where the tags that stand at `position` end. One that reaches past the end is none."""
    for _ in range(MAX_TAGS):
        end = _tag_end(data, position)
        if end is None or end >= len(data):
            break
        position = end
    return position


def _tag_end(data: memoryview, position: int) -> int | None:
    """Return where the ID3 or APE tag ends that stands at `position`, or None if none does."""
    head = bytes(data[position : position + APE_HEADER_BYTES])
    if head.startswith(b"ID3") and len(head) >= ID3_HEADER_BYTES:
        size = 0
        for byte in head[6:10]:
            size = size << 7 | byte & 0x7F
        footer = ID3_HEADER_BYTES if head[5] & ID3_HAS_FOOTER else 0
        return position + ID3_HEADER_BYTES + size + footer
    if head.startswith(b"APETAGEX") and len(head) == APE_HEADER_BYTES:
        return position + APE_HEADER_BYTES + int.from_bytes(head[12:16], "little")
    return position + ID3V1_BYTES if head.startswith(b"TAG") else None


def _summarised(pieces: list[memoryview], runs: list[_Run]) -> list[bytes | memoryview]:
    """Put a summary that is right before the frames of `pieces`: the encoder's with our counts, or else our own."""
    first, frames = runs[0].first, sum(run.frames for run in runs)
    sound_bytes = sum(len(piece) for piece in pieces)
    head = bytes(pieces[0][: first.length])
    at = first.summary_at
    if head[at : at + 4] in (b"Xing", b"Info") and head[at + 7] & COUNTS_FRAMES:
        return [_corrected(bytearray(head), at, frames - 1, sound_bytes), pieces[0][first.length :], *pieces[1:]]
    if head[at : at + 4] in (b"Xing", b"Info") or head[VBRI_AT : VBRI_AT + 4] == b"VBRI":
        pieces = [pieces[0][first.length :], *pieces[1:]]
        frames, sound_bytes = frames - 1, sound_bytes - first.length
    return [_own_summary(bytearray(head[:HEADER_BYTES]), frames, sound_bytes), *pieces]


def _corrected(summary: bytearray, at: int, frames: int, file_bytes: int) -> bytes:
    """Correct the counts of a summary frame. Where frames were lost or added, the last ones hold no padding."""
    flags = summary[at + 7]
    (counted,) = struct.unpack_from(">I", summary, at + SUMMARY_HEAD_BYTES)
    struct.pack_into(">I", summary, at + SUMMARY_HEAD_BYTES, frames)
    if flags & COUNTS_BYTES:
        struct.pack_into(">I", summary, at + SUMMARY_HEAD_BYTES + 4, file_bytes)
    delays_at = at + SUMMARY_HEAD_BYTES + LAME_DELAYS_AT + sum(n for flag, n in SUMMARY_FIELDS.items() if flags & flag)
    if counted != frames and delays_at + 3 <= len(summary):
        summary[delays_at + 1] &= 0xF0
        summary[delays_at + 2] = 0
    return bytes(summary)


def _own_summary(header: bytearray, frames: int, sound_bytes: int) -> bytes:
    """Return a silent frame that says how many frames of how many bytes follow."""
    header[1] |= 1  # without a checksum
    header[2] = ROOMY_BITRATE_INDEX << 4 | header[2] & 0x0D  # without padding
    frame = _frame(memoryview(header), 0)
    assert frame is not None
    counts = struct.pack(">III", COUNTS_FRAMES | COUNTS_BYTES, frames, sound_bytes + frame.length)
    return (bytes(header).ljust(frame.summary_at, b"\0") + b"Xing" + counts).ljust(frame.length, b"\0")
