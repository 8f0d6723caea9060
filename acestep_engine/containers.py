"""What stands around the sound in a file: complete before the sound is there, so that a growing file can be sent."""

import struct
from collections.abc import Mapping
from typing import Literal, Protocol

from acestep_engine.ogg import OggFile
from acestep_engine.params import OUTPUT_SAMPLE_RATE_HZ, AudioFormat
from acestep_engine.tags import id3, with_comments

WAV_INTEGER, WAV_FLOAT = 1, 3

# Of the MP3 files that are written here: MPEG 1 layer III at 48 kHz, of a constant bit rate.
MP3_KBPS = 192
MP3_FRAME_SAMPLES = 1152
MP3_FRAME_BYTES = MP3_FRAME_SAMPLES // 8 * MP3_KBPS * 1000 // OUTPUT_SAMPLE_RATE_HZ
MP3_DELAY = 576  # samples that LAME puts before the song
MP3_SIDE_INFO_BYTES = 32
LAME_TAG_BYTES = 190  # from the frame's start to the tag's checksum
LAME_LOWPASS_HZ = 18_600  # at this bit rate

FLAC_MARK = b"fLaC"
FLAC_LAST_BLOCK = 0x80
FLAC_SAMPLES_AT = 21  # in the file, of the 40 bits there the last 36


class Container(Protocol):
    """One file on its way out."""

    def pass_on(self, encoded: bytes) -> bytes:
        """What the encoder wrote next, as it goes into the file; some of it may be held back for a while."""


class WavFile:
    """Integers of 16 bits, or floats of 32 bits.

    The tags stand behind the sound, so that it begins where simple readers expect it.
    """

    def __init__(self, audio_format: Literal["wav", "wav32"], samples: int, tags: Mapping[str, str]) -> None:
        bits = 32 if audio_format == "wav32" else 16
        frame_bytes = 2 * bits // 8
        self._sound_left = samples * frame_bytes
        tag = id3(tags)
        tag += bytes(len(tag) % 2)
        self._behind = _riff_chunk(b"id3 ", tag)
        rate = OUTPUT_SAMPLE_RATE_HZ
        layout = struct.pack("<HIIHH", 2, rate, rate * frame_bytes, frame_bytes, bits)
        if audio_format == "wav32":  # any but integers need an extension, here an empty one, and a count of samples
            chunks = _riff_chunk(b"fmt ", struct.pack("<H", WAV_FLOAT) + layout + bytes(2))
            chunks += _riff_chunk(b"fact", struct.pack("<I", samples))
        else:
            chunks = _riff_chunk(b"fmt ", struct.pack("<H", WAV_INTEGER) + layout)
        chunks = b"WAVE" + chunks + b"data" + struct.pack("<I", self._sound_left)
        self._before = b"RIFF" + struct.pack("<I", len(chunks) + self._sound_left + len(self._behind)) + chunks

    def pass_on(self, encoded: bytes) -> bytes:
        self._sound_left -= len(encoded)
        before, self._before = self._before, b""
        if self._sound_left:
            return before + encoded
        behind, self._behind = self._behind, b""
        return before + encoded + behind


def _riff_chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content


class Mp3File:
    """The first frame, a summary that LAME would complete at the end, is written from what is known before."""

    def __init__(self, samples: int, tags: Mapping[str, str]) -> None:
        self._samples = samples
        self._tags = tags
        self._head: bytes | None = b""  # of LAME's summary, until all of it is there

    def pass_on(self, encoded: bytes) -> bytes:
        if self._head is None:
            return encoded
        self._head += encoded
        if len(self._head) < MP3_FRAME_BYTES:
            return b""
        head, self._head = self._head, None
        return id3(self._tags) + _mp3_summary(head[:4], self._samples) + head[MP3_FRAME_BYTES:]


def _mp3_summary(frame_header: bytes, samples: int) -> bytes:
    """A silent frame that tells how long the song is, and which samples at both ends are not part of it.

    As LAME lays it out: http://gabriel.mp3-tech.org/mp3infotag.html
    """
    with_delay = MP3_DELAY + samples
    padding = -with_delay % MP3_FRAME_SAMPLES
    if padding < MP3_DELAY:  # LAME wants that much behind the song
        padding += MP3_FRAME_SAMPLES
    frames = (with_delay + padding) // MP3_FRAME_SAMPLES
    size = (1 + frames) * MP3_FRAME_BYTES
    seek_table = bytes(256 * percent // 100 for percent in range(100))
    all_four, quality = 0x0F, 57
    tag = frame_header + bytes(MP3_SIDE_INFO_BYTES)
    tag += b"Info" + struct.pack(">III", all_four, frames, size) + seek_table + struct.pack(">I", quality)
    constant_rate, settings, joint_stereo_48_khz = 1, 0x34, 0x8D
    tag += b"LAME3.100" + bytes([constant_rate, LAME_LOWPASS_HZ // 100]) + bytes(8) + bytes([settings, MP3_KBPS])
    tag += (MP3_DELAY << 12 | padding).to_bytes(3, "big") + bytes([joint_stereo_48_khz, 0])
    tag += struct.pack(">HIH", MP3_KBPS, size, 0)  # the checksum of the sound is not known yet
    assert len(tag) == LAME_TAG_BYTES
    return (tag + _crc16(tag).to_bytes(2, "big")).ljust(MP3_FRAME_BYTES, b"\0")


def _crc16(data: bytes) -> int:
    """CRC-16/ARC."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xA001 if crc & 1 else 0)
    return crc


class FlacFile:
    """Tells its length from the start. Its checksum of the sound, which only the end knows, stays zero: not given."""

    def __init__(self, samples: int, tags: Mapping[str, str]) -> None:
        self._samples = samples
        self._tags = tags
        self._head: bytes | None = b""  # the metadata, until all of it is there

    def pass_on(self, encoded: bytes) -> bytes:
        if self._head is None:
            return encoded
        self._head += encoded
        size = _flac_head_size(self._head)
        if size is None:
            return b""
        head, sound, self._head = bytearray(self._head[:size]), self._head[size:], None
        counted = int.from_bytes(head[FLAC_SAMPLES_AT : FLAC_SAMPLES_AT + 5], "big") >> 36 << 36 | self._samples
        head[FLAC_SAMPLES_AT : FLAC_SAMPLES_AT + 5] = counted.to_bytes(5, "big")
        return with_comments(bytes(head), "flac", self._tags) + sound


def _flac_head_size(data: bytes) -> int | None:
    """Of all metadata blocks, once they are there."""
    start, last = len(FLAC_MARK), False
    while not last:
        if len(data) < start + 4:
            return None
        last = bool(data[start] & FLAC_LAST_BLOCK)
        start += 4 + int.from_bytes(data[start + 1 : start + 4], "big")
    return start if start <= len(data) else None


def open_container(audio_format: AudioFormat, samples: int, tags: Mapping[str, str]) -> Container:
    """A file of so many samples at 48 kHz."""
    match audio_format:
        case "wav" | "wav32":
            return WavFile(audio_format, samples, tags)
        case "mp3":
            return Mp3File(samples, tags)
        case "flac":
            return FlacFile(samples, tags)
        case "ogg" | "opus":
            return OggFile(audio_format, samples, tags)
