"""Audio files going out are complete, tagged and reproducible, and can be sent while they grow."""

import io
import json
import struct
import subprocess
import sys
import threading
import wave

import mutagen
import numpy as np
import pytest
import soundfile

from acestep_engine.audio import MEDIA_TYPES, AudioLimits, FloatArray, check_audio, read_audio
from acestep_engine.encode import AudioEncoder, encode_audio
from acestep_engine.errors import AudioError, NumericalError
from acestep_engine.mp3 import read_mp3, skip_id3
from acestep_engine.ogg import SERIAL
from acestep_engine.params import AUDIO_FORMATS, AudioFormat
from acestep_engine.tags import read_tags

LIMITS = AudioLimits()
RATE_HZ = 48_000
TAGS = {
    "prompt": "funk, 漢字, עברית, emoji 🎵",
    "lyrics": "[verse]\nNeon lights é\n\n[chorus]\nΩ",
    "seed": "18446744073709551615",
    "parameters": json.dumps({"prompt": "漢字", "infer_step": 60}, ensure_ascii=False),
}
# Among these are lengths where the silence behind an Opus song has an Ogg page of its own, and where an MP3 song needs
# a frame more for the silence behind it.
LENGTHS = [1, 575, 576, 577, 647, 648, 960, 1_151, 1_152, 1_728, 4_800, 46_427, 46_488, 48_000]


def tones(seconds: float) -> FloatArray:
    """A stereo signal whose channels differ."""
    t = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    return (0.5 * np.stack([np.sin(2 * np.pi * 440 * t), np.sin(2 * np.pi * 660 * t)])).astype(np.float32)


def noise(seconds: float) -> FloatArray:
    return 0.1 * np.random.default_rng(0).standard_normal((2, round(seconds * RATE_HZ)), dtype=np.float32)


def frames_of(data: bytes) -> int:
    return check_audio(data, LIMITS).frames


def parts_of(samples: FloatArray, cuts: list[int], audio_format: AudioFormat) -> list[bytes]:
    """The file's parts, for a song that comes in the stretches between these cuts."""
    encoder = AudioEncoder(audio_format, samples.shape[1], TAGS)
    return [*(encoder.push(stretch) for stretch in np.split(samples, cuts, axis=1)), encoder.finish()]


@pytest.mark.parametrize("audio_format", AUDIO_FORMATS)
def test_an_encoded_song_is_read_back_in_full_and_in_its_place(audio_format: AudioFormat) -> None:
    samples = tones(2.1)

    data = encode_audio(samples, audio_format, TAGS)
    found = read_audio(data, LIMITS)

    assert found.sample_rate_hz == RATE_HZ
    assert found.samples.shape == samples.shape
    limit = {"wav32": 1e-9, "wav": 4e-5, "flac": 4e-5}.get(audio_format, 0.1)
    assert np.abs(found.samples - samples)[:, 2_000:].max() < limit


@pytest.mark.parametrize("audio_format", AUDIO_FORMATS)
def test_tags_come_back_whatever_script_they_are_in(audio_format: AudioFormat) -> None:
    data = encode_audio(tones(0.5), audio_format, TAGS)

    found = read_tags(data)

    assert {name: found[name] for name in TAGS} == TAGS
    assert found["encoder"] == "acestep-serve"


@pytest.mark.parametrize("audio_format", AUDIO_FORMATS)
def test_the_longest_lyrics_fit_into_the_tags(audio_format: AudioFormat) -> None:
    lyrics = "漢字の歌詞\n" * 1_700
    tags = {"lyrics": lyrics, "parameters": json.dumps({"lyrics": lyrics})}

    data = encode_audio(tones(0.5), audio_format, tags)

    assert {name: read_tags(data)[name] for name in tags} == tags
    assert frames_of(data) == RATE_HZ // 2


@pytest.mark.parametrize("audio_format", AUDIO_FORMATS)
def test_characters_that_no_tag_can_hold_do_not_break_the_file(audio_format: AudioFormat) -> None:
    data = encode_audio(tones(0.5), audio_format, {"prompt": "a\0b\ud800c"})

    assert read_tags(data)["prompt"] == "ab?c"


@pytest.mark.parametrize("audio_format", AUDIO_FORMATS)
def test_the_same_song_is_the_same_bytes(audio_format: AudioFormat) -> None:
    first, second = (encode_audio(tones(1.0), audio_format, TAGS) for _ in range(2))

    assert first == second


@pytest.mark.parametrize("audio_format", ["ogg", "opus"])
def test_the_one_stream_of_an_ogg_file_has_a_fixed_number(audio_format: AudioFormat) -> None:
    data = encode_audio(tones(0.5), audio_format, TAGS)

    assert struct.unpack_from("<I", data, 14) == (SERIAL,)


@pytest.mark.parametrize("audio_format", AUDIO_FORMATS)
@pytest.mark.parametrize("samples", LENGTHS)
def test_a_song_of_any_length_ends_where_it_should(audio_format: AudioFormat, samples: int) -> None:
    assert frames_of(encode_audio(tones(1.0)[:, :samples], audio_format, {})) == samples


@pytest.mark.parametrize("audio_format", AUDIO_FORMATS)
@pytest.mark.parametrize("cuts", [[], [1], [4_799, 4_800], [70_000, 70_001, 100_000], list(range(0, 150_000, 700))])
def test_the_parts_of_a_song_are_its_file_however_it_was_cut(audio_format: AudioFormat, cuts: list[int]) -> None:
    song = noise(3.2)

    parts = parts_of(song, cuts, audio_format)

    assert b"".join(parts) == encode_audio(song, audio_format, TAGS)


@pytest.mark.parametrize("audio_format", AUDIO_FORMATS)
def test_the_beginning_of_a_file_can_be_played_before_there_is_more(audio_format: AudioFormat) -> None:
    song = noise(10)

    first, *_ = parts_of(song, [round(1.5 * RATE_HZ)], audio_format)

    heard, rate_hz = soundfile.read(io.BytesIO(first), dtype="float32") if audio_format != "flac" else _of_flac(first)
    assert rate_hz == RATE_HZ
    assert len(heard) > 0.8 * RATE_HZ
    assert read_tags(first)["prompt"] == TAGS["prompt"] if "wav" not in audio_format else first.startswith(b"RIFF")


def _of_flac(beginning: bytes) -> tuple[FloatArray, int]:
    """libsndfile reads a FLAC file as far as it goes, but in blocks only."""
    with soundfile.SoundFile(io.BytesIO(beginning)) as file:
        blocks = []
        try:
            while len(block := file.read(4_096, dtype="float32")):
                blocks.append(block)
        except soundfile.LibsndfileError:
            pass  # where it is cut off
        return np.concatenate(blocks), file.samplerate


@pytest.mark.parametrize("audio_format", AUDIO_FORMATS)
def test_players_are_told_the_length_from_the_start(audio_format: AudioFormat) -> None:
    song = noise(10)
    file = encode_audio(song, audio_format, TAGS)
    known = file if audio_format in ("ogg", "opus") else file[:20_000]  # an Ogg file tells it at its end only

    assert mutagen.File(io.BytesIO(known)).info.length == pytest.approx(10, abs=0.03)


@pytest.mark.parametrize("samples", LENGTHS)
def test_the_summary_of_an_mp3_file_counts_what_follows(samples: int) -> None:
    content = skip_id3(memoryview(encode_audio(tones(1.0)[:, :samples], "mp3", TAGS)))
    frames, size = struct.unpack_from(">II", content, 36 + 8)

    assert read_mp3(content, 10) == content
    assert size == len(content) == (1 + frames) * 576
    delay_and_padding = int.from_bytes(content[177:180], "big")
    assert (delay_and_padding >> 12, delay_and_padding & 0xFFF) == (576, frames * 1_152 - 576 - samples)


def test_a_flac_file_says_that_nobody_knows_its_checksum() -> None:
    info = mutagen.File(io.BytesIO(encode_audio(tones(1.0), "flac", TAGS))).info

    assert (info.md5_signature, info.total_samples) == (0, RATE_HZ)


@pytest.mark.parametrize("audio_format", AUDIO_FORMATS)
def test_more_or_fewer_samples_than_announced_are_a_mistake(audio_format: AudioFormat) -> None:
    encoder = AudioEncoder(audio_format, 10, {})
    encoder.push(np.zeros((2, 9), np.float32))

    with pytest.raises(ValueError, match="1 samples more"):
        encoder.push(np.zeros((2, 2), np.float32))
    with pytest.raises(ValueError, match="1 samples are missing"):
        encoder.finish()


def test_an_encoder_keeps_none_of_what_it_has_answered() -> None:
    import tracemalloc

    second = noise(1)
    encoder = AudioEncoder("flac", 60 * RATE_HZ, TAGS)
    encoder.push(second)
    tracemalloc.start()
    for _ in range(30):
        encoder.push(second)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 100_000


@pytest.mark.parametrize("audio_format", AUDIO_FORMATS)
def test_four_minutes_are_encoded_even_on_a_small_stack(audio_format: AudioFormat) -> None:
    samples = np.zeros((2, 240 * RATE_HZ), np.float32)
    samples[:, ::4800] = 0.5
    encoded: list[bytes] = []
    before = threading.stack_size(512 * 1024)
    try:
        thread = threading.Thread(target=lambda: encoded.append(encode_audio(samples, audio_format, TAGS)))
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)

    assert frames_of(encoded[0]) == 240 * RATE_HZ


def test_samples_beyond_full_scale_are_clipped_and_do_not_wrap() -> None:
    samples = np.array([[1.5, -1.5, 1.0], [2.0, -7.0, -1.0]], np.float32)

    found = read_audio(encode_audio(samples, "wav", {}), LIMITS)

    expected = np.array([[1, -1, 1], [1, -1, -1]]) * 32_767 / 32_768
    np.testing.assert_allclose(found.samples, expected, atol=1e-6)


def test_floats_beyond_full_scale_are_kept_as_they_are() -> None:
    samples = np.array([[1.5, -1.5, 1e-9], [2.0, -7.0, -1.0]], np.float32)

    found = read_audio(encode_audio(samples, "wav32", {}), LIMITS)

    np.testing.assert_array_equal(found.samples, samples)


@pytest.mark.parametrize("audio_format", AUDIO_FORMATS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_song_that_is_not_finite_is_no_file(audio_format: AudioFormat, value: float) -> None:
    samples = tones(1.5)
    samples[1, 70_000] = value

    with pytest.raises(NumericalError):
        encode_audio(samples, audio_format, {})


@pytest.mark.parametrize("shape", [(2, 0), (1, 100), (100, 2), (200,)])
def test_only_stereo_is_encoded(shape: tuple[int, ...]) -> None:
    with pytest.raises(AudioError, match="cannot be encoded"):
        encode_audio(np.zeros(shape, np.float32), "wav", {})


def test_a_wav_file_is_plain_16_bit_stereo_for_other_readers() -> None:
    data = encode_audio(tones(0.25), "wav", TAGS)

    with wave.open(io.BytesIO(data)) as reader:
        assert reader.getparams()[:4] == (2, 2, RATE_HZ, RATE_HZ // 4)
    assert struct.unpack_from("<I", data, 4)[0] == len(data) - 8


def test_a_wav32_file_is_float_stereo_for_other_readers() -> None:
    samples = tones(0.25)
    data = encode_audio(samples, "wav32", TAGS)

    with soundfile.SoundFile(io.BytesIO(data)) as reader:
        assert (reader.format, reader.subtype, reader.channels, reader.samplerate) == ("WAV", "FLOAT", 2, RATE_HZ)
        np.testing.assert_array_equal(reader.read(dtype="float32").T, samples)
    assert struct.unpack_from("<I", data, 4)[0] == len(data) - 8
    layout = struct.unpack_from("<4sIHHIIHHH", data, 12)
    assert layout == (b"fmt ", 18, 3, 2, RATE_HZ, 8 * RATE_HZ, 8, 32, 0)
    assert struct.unpack_from("<4sII", data, 38) == (b"fact", 4, RATE_HZ // 4)


def test_every_format_has_a_media_type() -> None:
    assert set(MEDIA_TYPES) == set(AUDIO_FORMATS)


def test_neither_torch_nor_a_web_framework_is_needed() -> None:
    code = "import sys, acestep_engine.encode as a; print([m for m in ('torch', 'ray', 'fastapi') if m in sys.modules])"

    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
