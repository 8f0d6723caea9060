"""MP3 files frame by frame (ISO/IEC 11172-3, 13818-3), to find those that are cut off.

The decoder plays what is left of a truncated file without a word, so that is found out here, before decoding.
"""

import struct
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
MAX_ID3_TAGS = 8  # files have one or two; a million empty ones would only cost time

HEADER_BYTES = 4
HAS_FRAME_COUNT, HAS_BYTE_COUNT = 1, 2
# An encoder's count of its own bytes may include tags that an editor has since removed.
COUNT_SLACK_BYTES = 4096
PADDING_S = 1.0  # encoders add some silence that decoders take off again


@dataclass(frozen=True)
class Frame:
    """A frame's length in bytes, how long it sounds, and where an encoder's summary would stand in it."""

    length: int
    duration_s: float
    summary_at: int


def skip_id3(data: memoryview) -> memoryview:
    """`data` after the ID3v2 tags at its start. Raises AudioError if a tag reaches past the end."""
    for _ in range(MAX_ID3_TAGS):
        if bytes(data[:3]) != b"ID3" or len(data) < ID3_HEADER_BYTES:
            break
        size = 0
        for byte in data[6:10]:
            size = size << 7 | byte & 0x7F
        footer = ID3_HEADER_BYTES if data[5] & ID3_HAS_FOOTER else 0
        end = ID3_HEADER_BYTES + size + footer
        if end >= len(data):
            raise AudioError("the audio file ends within its ID3 tag")
        data = data[end:]
    return data


def check_mp3(data: memoryview, max_duration_s: float) -> None:
    """Walk the frames from the first byte on, up to the first that is none (a tag at the end, say).

    Raises AudioError if there is no frame, if the last one is incomplete, or if there is clearly less than the encoder
    says it wrote; AudioTooLargeError as soon as the frames last longer than the limit.
    """
    first = _frame(data, 0)
    if first is None:
        raise AudioError("this is no MP3 file: it starts like one, but its first frame is not valid")
    position, duration_s, frame = 0, 0.0, first
    while True:
        position += frame.length
        duration_s += frame.duration_s
        if position > len(data):
            raise AudioError("the MP3 file is cut off in the middle of a frame")
        if duration_s > max_duration_s + PADDING_S:
            raise AudioTooLargeError(f"the MP3 file lasts over {duration_s:.1f} s, the limit is {max_duration_s:g} s")
        following = _frame(data, position)
        if following is None:
            break
        frame = following
    promised = _promised_bytes(data, first)
    if promised is not None and len(data) + COUNT_SLACK_BYTES < promised:
        raise AudioError(f"the MP3 file is cut off: {len(data)} bytes are there of {promised} that were encoded")


def _frame(data: memoryview, position: int) -> Frame | None:
    """The frame whose header stands at `position`, or None if none does."""
    if position + HEADER_BYTES > len(data):
        return None
    header = int.from_bytes(data[position : position + HEADER_BYTES], "big")
    version_bits, layer = header >> 19 & 3, header >> 17 & 3
    bitrate_index, rate_index = header >> 12 & 15, header >> 10 & 3
    if header >> 21 != 0x7FF or layer != LAYER_3 or version_bits not in VERSION_BITS:
        return None
    if bitrate_index in (0, 15) or rate_index == 3:  # 0 is a bit rate that only a search could find out; nobody uses it
        return None
    version, divisor = VERSION_BITS[version_bits]
    rate_hz = MPEG1_RATES_HZ[rate_index] // divisor
    bitrate = 1000 * BITRATES_KBPS[version][bitrate_index]
    samples = 1152 if version == 1 else 576
    mono = header >> 6 & 3 == 3
    side_info = {(1, False): 32, (1, True): 17, (2, False): 17, (2, True): 9}[version, mono]
    padding = header >> 9 & 1
    return Frame(samples // 8 * bitrate // rate_hz + padding, samples / rate_hz, HEADER_BYTES + side_info)


def _promised_bytes(data: memoryview, first: Frame) -> int | None:
    """How many bytes the encoder says it wrote, from the Xing or Info summary in the first frame."""
    summary = bytes(data[first.summary_at : first.summary_at + 16])
    if summary[:4] not in (b"Xing", b"Info") or len(summary) < 16:
        return None
    flags, *counts = struct.unpack(">III", summary[4:16])
    if not flags & HAS_BYTE_COUNT:
        return None
    promised: int = counts[1] if flags & HAS_FRAME_COUNT else counts[0]
    return promised
