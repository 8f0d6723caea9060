"""MP3 files as they are found: with bytes before the first frame, trimmed, joined, without a summary."""

import io
import itertools
import struct
from typing import Any

import numpy as np
import pytest
import soundfile

from acestep_engine.audio import AudioLimits, FloatArray, check_audio, read_audio
from acestep_engine.encode import encode_audio
from acestep_engine.errors import AudioError, AudioTooLargeError
from acestep_engine.mp3 import read_mp3

LIMITS = AudioLimits()
RATE_HZ = 48_000
FRAME_BYTES, FRAME_SAMPLES = 576, 1152  # of 192 kbit/s at 48 kHz
JUNK = bytes(np.random.default_rng(1).integers(0, 256, 700, dtype=np.uint8))
APE_TAG = b"APETAGEX" + struct.pack("<II", 2_000, 40) + bytes(16) + bytes(40)
ID3 = b"ID3\x04\x00\x00\x00\x00\x00\x14" + bytes(20)


def song(seconds: float = 3) -> FloatArray:
    t = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    return (0.5 * np.stack([np.sin(2 * np.pi * 440 * t), np.sin(2 * np.pi * 660 * t)])).astype(np.float32)


def mp3(seconds: float = 3) -> bytes:
    """Frames of a constant size, without tags; the first one is the encoder's summary."""
    data = encode_audio(song(seconds), "mp3", {})
    return data[data.index(b"\xff\xfb") :]


def variable_mp3(seconds: float = 3) -> bytes:
    """Frames of many sizes behind a summary: silence, then noise."""
    samples = 0.3 * np.random.default_rng(0).standard_normal((round(seconds * RATE_HZ), 2))
    samples[: len(samples) // 2] = 0
    file = io.BytesIO()
    options: dict[str, Any] = {"bitrate_mode": "VARIABLE"}
    soundfile.write(file, samples, RATE_HZ, format="MP3", subtype="MPEG_LAYER_III", **options)
    return file.getvalue()


def frames_of(data: bytes) -> int:
    return check_audio(data, LIMITS).frames


@pytest.mark.parametrize(
    "before",
    [
        bytes(2_048),
        b"\r\n",
        JUNK,
        JUNK[:1],
        b"<br />\n<b>Warning</b>: something in /srv/www/download.php on line 5<br />\n",
        b"\xff\xfb\x90\x00" + bytes(60),
        b"\xff\xfb" * 100,
        ID3 + bytes(1_500),
        b"\r\n" + ID3,
        ID3 + APE_TAG,
        APE_TAG + ID3,
        b"TAG" + bytes(125) + ID3,
        ID3 * 12,
        b"ID3\x04\x00\x00\x00\x00\x00\x05" + bytes(200),
        b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f" + bytes(200),
    ],
    ids=itertools.count(),
)
def test_what_stands_before_the_first_frame_is_skipped(before: bytes) -> None:
    expected = read_audio(mp3(), LIMITS).samples

    found = read_audio(before + mp3(), LIMITS).samples

    np.testing.assert_array_equal(found, expected)


def test_frames_that_begin_too_late_are_not_looked_for() -> None:
    assert frames_of(bytes(65_000) + mp3()) == 3 * RATE_HZ
    with pytest.raises(AudioError, match="no audio file that is known"):
        check_audio(bytes(66_000) + mp3(), LIMITS)


def test_a_tag_behind_the_frames_is_no_sound() -> None:
    for behind in (b"TAG" + bytes(125), APE_TAG, ID3, bytes(5_000), JUNK):
        assert frames_of(mp3() + behind) == 3 * RATE_HZ


@pytest.mark.parametrize("kept", [0.03, 0.3, 0.5, 0.9, 0.999])
def test_a_trimmed_file_is_read_for_what_is_there(kept: float) -> None:
    data = mp3()
    whole = read_audio(data, LIMITS).samples

    found = read_audio(data[: int(len(data) * kept)], LIMITS).samples

    last_frames = int(len(data) * kept) // FRAME_BYTES
    assert found.shape[1] == pytest.approx((last_frames - 1) * FRAME_SAMPLES - FRAME_SAMPLES, abs=FRAME_SAMPLES)
    np.testing.assert_allclose(found[:, :-FRAME_SAMPLES], whole[:, : found.shape[1] - FRAME_SAMPLES], atol=1e-4)


def test_a_file_without_its_first_frames_is_read_for_what_is_there() -> None:
    found = frames_of(mp3()[20 * FRAME_BYTES :])

    assert found == pytest.approx(3 * RATE_HZ - 19 * FRAME_SAMPLES, abs=2 * FRAME_SAMPLES)


def test_less_than_a_frame_is_refused() -> None:
    for size in (4, 5, FRAME_BYTES - 1):
        with pytest.raises(AudioError, match="cut off in the middle of its first frame"):
            check_audio(mp3()[:size], LIMITS)


def test_a_file_of_variable_bit_rate_is_read_to_its_end_with_and_without_its_summary() -> None:
    data = variable_mp3()
    assert b"Xing" in data[:100]
    without = data[data.index(b"\xff\xfb", 4) :]

    assert frames_of(data) == 3 * RATE_HZ
    assert frames_of(without) == pytest.approx(3 * RATE_HZ, abs=2 * FRAME_SAMPLES)


@pytest.mark.parametrize("frames", [0, 1, 50, 10_000, 0xFFFFFFFF])
@pytest.mark.parametrize("size", [0, 1_000, 0xFFFFFFFF])
def test_a_summary_that_lies_is_corrected(frames: int, size: int) -> None:
    data = bytearray(mp3())
    at = data.index(b"Info")
    struct.pack_into(">II", data, at + 8, frames, size)

    assert frames_of(bytes(data)) == pytest.approx(3 * RATE_HZ, abs=FRAME_SAMPLES)


def test_a_summary_that_counts_nothing_is_replaced() -> None:
    data = bytearray(mp3())
    struct.pack_into(">I", data, data.index(b"Info") + 4, 0)

    assert frames_of(bytes(data)) == pytest.approx(3 * RATE_HZ, abs=2 * FRAME_SAMPLES)


def test_joined_files_are_read_as_one() -> None:
    for between in (b"", ID3, JUNK, b"TAG" + bytes(125) + ID3):
        found = frames_of(mp3() + between + mp3())
        assert found == pytest.approx(6 * RATE_HZ, abs=4 * FRAME_SAMPLES)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 22_050, 32_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_sample_rate_is_read_without_a_summary(rate_hz: int, channels: int) -> None:
    file = io.BytesIO()
    samples = np.tile(song(2)[0, : 2 * rate_hz, None], channels)
    soundfile.write(file, samples, rate_hz, format="MP3", subtype="MPEG_LAYER_III")
    data = file.getvalue()
    sound = data[data.index(data[:2], 4) :]

    info = check_audio(b"\r\n" + sound, LIMITS)

    assert (info.sample_rate_hz, info.channels) == (rate_hz, channels)
    assert info.duration_s == pytest.approx(2, abs=0.2)


def test_frames_that_were_read_are_read_again_as_the_same() -> None:
    once = read_mp3(memoryview(JUNK + mp3()[: 30 * FRAME_BYTES + 5]), 10)

    assert read_mp3(memoryview(once), 10) == once


def test_a_long_file_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(AudioTooLargeError, match=r"lasts over 2\.5"):
        read_mp3(memoryview(JUNK + mp3()), 1.5)


def test_junk_that_looks_like_headers_is_searched_for_a_megabyte_at_most() -> None:
    part = mp3(0.1)

    found = frames_of((part + b"\x00" + b"\xff\xfb\x94\x00\x00" * 13_000) * 100)

    assert 16 <= found / FRAME_SAMPLES / (len(part) / FRAME_BYTES) <= 18
