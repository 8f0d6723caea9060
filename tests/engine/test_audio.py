"""Audio files that come in are judged by what is in them."""

import io
import json
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from acestep_engine.audio import (
    AudioLimits,
    FloatArray,
    check_audio,
    read_audio,
)
from acestep_engine.encode import encode_audio
from acestep_engine.errors import AudioError, AudioTooLargeError
from acestep_engine.tags import read_tags

LIMITS = AudioLimits()
RATE_HZ = 48_000
TAGS = {
    "prompt": "funk, 漢字, עברית, emoji 🎵",
    "lyrics": "[verse]\nNeon lights é\n\n[chorus]\nΩ",
    "seed": "18446744073709551615",
    "parameters": json.dumps({"prompt": "漢字", "infer_step": 60}, ensure_ascii=False),
}


def tones(seconds: float, rate_hz: int = RATE_HZ) -> FloatArray:
    """A stereo signal whose channels differ."""
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.5 * np.stack([np.sin(2 * np.pi * 440 * t), np.sin(2 * np.pi * 660 * t)])).astype(np.float32)


def file_of(samples: Any, rate_hz: int = RATE_HZ, container: str = "WAV", codec: str = "PCM_16") -> bytes:
    """An audio file that we would not write ourselves. `samples` are (n, channels)."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format=container, subtype=codec)
    return file.getvalue()


def frames_of(data: bytes) -> int:
    return check_audio(data, LIMITS).frames


# Reading


def test_a_mono_upload_becomes_stereo() -> None:
    mono = tones(0.5)[0]

    found = read_audio(file_of(mono, codec="FLOAT"), LIMITS)

    np.testing.assert_array_equal(found.samples, [mono, mono])


def test_the_centre_of_surround_sound_is_heard_on_both_sides_and_a_side_on_its_own() -> None:
    surround = np.zeros((300, 6), np.float32)
    surround[:100, 2], surround[100:200, 0], surround[200:, 4] = 0.5, 0.5, 0.5

    left, right = read_audio(file_of(surround, codec="FLOAT"), LIMITS).samples

    assert left[50] == right[50] > 0.1
    assert left[150] > 0.1
    assert right[150] == 0
    assert left[250] > 0.1
    assert right[250] == 0


@pytest.mark.parametrize("channels", range(1, 9))
def test_a_mix_of_full_scale_channels_stays_within_full_scale(channels: int) -> None:
    found = read_audio(file_of(np.ones((100, channels), np.float32), codec="FLOAT"), LIMITS)

    assert found.samples.shape == (2, 100)
    np.testing.assert_allclose(found.samples, 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("container", "codec", "rate_hz"),
    [
        ("WAV", "PCM_U8", 8_000),
        ("WAV", "PCM_24", 192_000),
        ("WAV", "DOUBLE", 44_100),
        ("WAVEX", "PCM_16", 96_000),
        ("RF64", "PCM_16", 48_000),
        ("W64", "PCM_24", 96_000),
        ("AU", "PCM_16", 44_100),
        ("AU", "FLOAT", 8_000),
        ("AIFF", "PCM_16", 22_050),
        ("FLAC", "PCM_24", 192_000),
        ("MP3", "MPEG_LAYER_III", 22_050),
        ("MP3", "MPEG_LAYER_III", 8_000),
        ("OGG", "VORBIS", 44_100),
        ("OGG", "OPUS", 48_000),
    ],
)
def test_every_accepted_kind_of_file_is_read(container: str, codec: str, rate_hz: int) -> None:
    info = check_audio(file_of(tones(0.5, rate_hz).T, rate_hz, container, codec), LIMITS)

    assert info.sample_rate_hz == rate_hz
    assert info.duration_s == pytest.approx(0.5, abs=0.01)
    assert info.channels == 2


def test_a_view_into_memory_is_read_like_bytes() -> None:
    data = np.frombuffer(encode_audio(tones(0.5), "flac", TAGS), dtype=np.uint8)

    assert read_audio(data.data, LIMITS).samples.shape == (2, RATE_HZ // 2)


def test_the_golden_source_is_read_as_it_is(golden: Path) -> None:
    data = (golden / "cases" / "source_6s.wav").read_bytes()

    expected, rate_hz = soundfile.read(io.BytesIO(data), dtype="float32")

    found = read_audio(data, LIMITS)
    assert found.sample_rate_hz == rate_hz
    np.testing.assert_array_equal(found.samples, expected.T)


# Refusing


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"R", "no audio file"),
        (b"hello, this is no audio" * 50, "no audio file"),
        (b"PK\x03\x04" + bytes(500), "zip archive"),
        (b"#EXTM3U\nhttp://127.0.0.1:1/song.mp3\n", "playlist"),
        (b"[playlist]\nFile1=http://127.0.0.1:1/song.mp3\n", "playlist"),
        (b"\x00\x00\x00\x20ftypM4A " + bytes(500), "M4A"),
        (b"\xf0\x7e\x00\x01" + bytes(500), "no audio file"),  # a MIDI sample dump, which libsndfile would try
        (bytes(4_000), "no audio file"),
        (b"\xff" * 4_000, "no MP3 file"),
        (b"\xff\xf1\x50\x80" + bytes(500), "no MP3 file"),  # AAC
        (b"RIFF\xff\xff\xff\xffWAVE", "broken"),
        (b"RIFF\x24\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x02\x00" + bytes(16), "broken"),
        (b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f" + bytes(500), "ends within its ID3 tag"),
        (b"ID3\x04\x00\x00\x00\x00\x00\x00" * 10_000, "no audio file"),
    ],
)
def test_what_is_no_audio_is_refused_with_a_reason(data: bytes, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        check_audio(data, LIMITS)
    with pytest.raises(AudioError, match=message):
        read_audio(data, LIMITS)


@pytest.mark.parametrize("container", ["PAF", "MAT5", "SDS", "PVF", "NIST"])
def test_rare_containers_that_the_library_could_open_are_refused(container: str) -> None:
    with pytest.raises(AudioError, match="no audio file that is known"):
        check_audio(file_of(np.zeros((100, 1)), container=container), LIMITS)


def test_a_rare_codec_in_a_common_container_is_refused_by_name() -> None:
    with pytest.raises(AudioError, match="IMA_ADPCM"):
        check_audio(file_of(tones(0.5).T, codec="IMA_ADPCM"), LIMITS)


def test_a_file_without_samples_is_refused() -> None:
    with pytest.raises(AudioError, match="no samples"):
        check_audio(file_of(np.zeros((0, 2))), LIMITS)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_not_finite_are_refused(value: float) -> None:
    samples = tones(2).T.copy()
    samples[90_000, 1] = value

    with pytest.raises(AudioError, match="NaN or infinite"):
        check_audio(file_of(samples, codec="FLOAT"), LIMITS)


@pytest.mark.parametrize("value", [-101.0, 1e30])
def test_samples_far_over_full_scale_are_refused(value: float) -> None:
    samples = tones(2).T.copy()
    samples[90_000, 1] = value

    with pytest.raises(AudioError, match=r"the limit is 100; full scale is 1"):
        check_audio(file_of(samples, codec="FLOAT"), LIMITS)


@pytest.mark.parametrize("rate_hz", [0, 1, 7_999, 192_001, 4_000_000_000])
def test_a_forged_sample_rate_is_refused(rate_hz: int) -> None:
    data = bytearray(file_of(tones(0.1).T))
    struct.pack_into("<I", data, 24, rate_hz)

    with pytest.raises(AudioError, match=r"outside of 8000 to 192000 Hz|broken"):
        check_audio(bytes(data), LIMITS)


@pytest.mark.parametrize("at", [4, 16, 40])
def test_forged_chunk_sizes_are_survived_in_silence(at: int, capfd: pytest.CaptureFixture[str]) -> None:
    original = file_of(tones(0.1).T)
    for size in (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
        data = bytearray(original)
        struct.pack_into("<I", data, at, size)
        with suppress(AudioError):
            assert frames_of(bytes(data)) <= len(original)
    assert capfd.readouterr() == ("", "")


def test_more_channels_than_allowed_are_too_large() -> None:
    with pytest.raises(AudioTooLargeError, match="9 channels exceed the limit of 8"):
        check_audio(file_of(np.zeros((100, 9))), LIMITS)


@pytest.mark.parametrize(("container", "codec"), [("WAV", "PCM_16"), ("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS")])
def test_audio_longer_than_allowed_is_too_large(container: str, codec: str) -> None:
    data = file_of(tones(4).T, container=container, codec=codec)

    assert check_audio(data, AudioLimits(max_duration_s=4.0)).duration_s == 4.0
    with pytest.raises(AudioTooLargeError, match=r"the limit is 2\.5 s"):
        check_audio(data, AudioLimits(max_duration_s=2.5))


def test_a_decode_bomb_is_refused_at_the_limit_without_decoding_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 8_000, 2, format="FLAC", subtype="PCM_16") as writer:
        silence = np.zeros((60 * 8_000, 2), np.int16)
        for _ in range(60):
            writer.write(silence)
    data = file.getvalue()
    assert len(data) < 200_000
    decoded: list[int] = []
    read = soundfile.SoundFile.read

    def counted(decoder: Any, *args: Any, **kwargs: Any) -> Any:
        block = read(decoder, *args, **kwargs)
        decoded.append(block.nbytes)
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    with pytest.raises(AudioTooLargeError, match=r"lasts at least 60\d\.\d s, the limit is 600 s"):
        check_audio(data, LIMITS)
    assert sum(decoded) < 610 * 8_000 * 2 * 4
    assert max(decoded) < 2**20
    decoded.clear()
    read_audio(data, LIMITS)
    assert sum(decoded) < 250 * 8_000 * 2 * 4
    assert max(decoded) < 2**20


def test_neither_torch_nor_a_web_framework_is_needed() -> None:
    code = "import sys, acestep_engine.audio as a; print([m for m in ('torch', 'ray', 'fastapi') if m in sys.modules])"

    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_tags_of_a_file_without_any_are_empty_or_refused() -> None:
    assert read_tags(file_of(np.zeros((100, 2)))) == {}
    with pytest.raises(AudioError):
        read_tags(b"no audio")
