"""What is there is read, whatever the lengths in a file say."""

import io
import struct

import numpy as np
import pytest
import soundfile

from acestep_engine.audio import AudioLimits, FloatArray, check_audio, read_audio
from acestep_engine.encode import encode_audio
from acestep_engine.errors import AudioError, AudioTooLargeError
from acestep_engine.params import AudioFormat

LIMITS = AudioLimits()
RATE_HZ = 48_000
UNKNOWN = 0xFFFFFFFF
LIST = b"LIST\x1a\x00\x00\x00INFOISFT\x0e\x00\x00\x00Lavf59.27.100\x00"

RANDOM = 0.3 * np.random.default_rng(0).standard_normal((2, RATE_HZ // 2))
SONG = (np.rint(RANDOM.clip(-1, 1) * 32_767) / 32_768).astype(np.float32)  # as 16 bits hold it


def file_of(container: str, codec: str = "PCM_16", samples: FloatArray = SONG) -> bytearray:
    file = io.BytesIO()
    soundfile.write(file, samples.T, RATE_HZ, format=container, subtype=codec)
    return bytearray(file.getvalue())


def assert_is_the_song(data: bytes | bytearray) -> None:
    found = read_audio(bytes(data), LIMITS).samples
    np.testing.assert_array_equal(found, SONG)


def wav(*before_data: bytes, behind: bytes = b"", size: int | None = None, sound: bytes | None = None) -> bytes:
    """A WAV file with chunks around its sound, whose length says `size`."""
    plain = file_of("WAV")
    sound = bytes(plain[44:]) if sound is None else sound
    head = bytes(plain[:36]) + b"".join(before_data) + b"data" + struct.pack("<I", len(sound) if size is None else size)
    return head + sound + behind


@pytest.mark.parametrize("riff_size", [0, 36, 1_000, UNKNOWN])
@pytest.mark.parametrize("size", [0, UNKNOWN, 0x7FFFFFFF, 10_000_000])
@pytest.mark.parametrize("before", [b"", LIST])
def test_a_wav_file_of_unknown_length_is_read_to_its_end(riff_size: int, size: int, before: bytes) -> None:
    data = bytearray(wav(before, size=size))
    struct.pack_into("<I", data, 4, riff_size)

    assert_is_the_song(data)


def test_a_wav_file_whose_length_was_never_brought_up_to_date_is_read_to_its_end() -> None:
    assert_is_the_song(wav(size=4_096))


@pytest.mark.parametrize("behind", [LIST, b"id3 \x03\x00\x00\x00abc\x00" + LIST, b"TAG" + bytes(125), bytes(500)])
def test_what_stands_behind_a_length_that_is_right_is_no_sound(behind: bytes) -> None:
    assert_is_the_song(wav(behind=behind))


def test_an_empty_wav_file_with_tags_holds_no_samples() -> None:
    with pytest.raises(AudioError, match="no samples"):
        check_audio(wav(behind=LIST, sound=b""), LIMITS)


def test_the_sound_may_stand_in_a_second_data_chunk() -> None:
    assert_is_the_song(wav(b"data" + bytes(4)))


@pytest.mark.parametrize("padded", [True, False])
def test_a_chunk_of_odd_size_may_be_padded_or_not(padded: bool) -> None:
    odd = b"LIST\x05\x00\x00\x00INFO\x01" + bytes(padded)

    assert_is_the_song(wav(odd))
    assert_is_the_song(wav(behind=odd + LIST))


@pytest.mark.parametrize("size", [0, 3, 5_000, UNKNOWN])
def test_a_chunk_before_the_sound_may_lie_about_its_length(size: int) -> None:
    assert_is_the_song(wav(b"LIST" + struct.pack("<I", size) + LIST[8:]))


@pytest.mark.parametrize("size", [0, 17, UNKNOWN])
def test_the_layout_of_the_samples_may_lie_about_its_length(size: int) -> None:
    data = bytearray(wav())
    struct.pack_into("<I", data, 16, size)

    assert_is_the_song(data)


@pytest.mark.parametrize("magic", [b"RF64", b"BW64"])
@pytest.mark.parametrize("size_64", [None, 0, 2**63])
def test_a_file_of_64_bit_lengths_is_read_as_either_kind_and_whatever_they_say(
    magic: bytes, size_64: int | None
) -> None:
    data = file_of("RF64")
    data[:4] = magic
    if size_64 is not None:
        struct.pack_into("<Q", data, 28, size_64)

    assert_is_the_song(data)


def test_tags_behind_a_file_of_64_bit_lengths_are_no_sound() -> None:
    assert_is_the_song(file_of("RF64") + LIST)


@pytest.mark.parametrize("size", [0, 1, 2**40, 2**64 - 1])
def test_a_wave64_file_is_read_whatever_its_length_says(size: int) -> None:
    data = file_of("W64")
    struct.pack_into("<Q", data, data.index(b"data") + 16, size)

    assert_is_the_song(data)


def test_a_wav_file_of_the_other_byte_order_is_read() -> None:
    plain = file_of("WAV")
    layout = struct.pack(">HHIIHH", *struct.unpack_from("<HHIIHH", plain, 20))
    sound = np.frombuffer(plain[44:], "<i2").astype(">i2").tobytes()
    head = b"RIFX" + bytes(4) + b"WAVEfmt " + struct.pack(">I", 16) + layout

    for size in (len(sound), 0, UNKNOWN):
        assert_is_the_song(head + b"data" + struct.pack(">I", size) + sound)


@pytest.mark.parametrize("frames", [0, 10, 10_000_000])
@pytest.mark.parametrize("size", [0, 8, 100, UNKNOWN, None])
def test_an_aiff_file_is_read_whatever_its_lengths_say(frames: int, size: int | None) -> None:
    data = file_of("AIFF")
    struct.pack_into(">I", data, data.index(b"COMM") + 10, frames)
    if size is not None:
        struct.pack_into(">I", data, data.index(b"SSND") + 4, size)
        struct.pack_into(">I", data, 4, 0)

    assert_is_the_song(data)


def test_tags_behind_the_sound_of_an_aiff_file_are_no_sound() -> None:
    assert_is_the_song(file_of("AIFF") + b"NAME\x00\x00\x00\x04song")


def test_an_aiff_file_without_sound_holds_no_samples() -> None:
    empty = file_of("AIFF", samples=SONG[:, :0])

    for behind in (b"", b"NAME\x00\x00\x00\x04song"):
        with pytest.raises(AudioError, match="no samples"):
            check_audio(bytes(empty) + behind, LIMITS)


def test_every_layout_of_an_aiff_file_is_read() -> None:
    for codec in ("PCM_S8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"):
        assert check_audio(bytes(file_of("AIFF", codec)), LIMITS).frames == SONG.shape[1]


@pytest.mark.parametrize("size", [0, 100, 10_000_000, UNKNOWN])
def test_an_au_file_is_read_whatever_its_length_says(size: int) -> None:
    data = file_of("AU")
    struct.pack_into(">I", data, 8, size)

    assert_is_the_song(data)


def flac(promised: int | None = None) -> bytes:
    data = file_of("FLAC")
    if promised is not None:
        bits = int.from_bytes(data[21:26], "big") >> 36 << 36 | promised
        data[21:26] = bits.to_bytes(5, "big")
    return bytes(data)


@pytest.mark.parametrize("promised", [0, 1, 1_000, 10_000_000, 2**36 - 1])
def test_a_flac_file_is_read_whatever_its_length_says(promised: int) -> None:
    assert_is_the_song(flac(promised))


@pytest.mark.parametrize("behind", [b"TAG" + bytes(125), bytes(100_000), b"fLaC"])
def test_what_stands_behind_a_flac_file_is_no_sound(behind: bytes) -> None:
    assert_is_the_song(flac() + behind)


@pytest.mark.parametrize("promised", [None, 0, 10_000_000])
@pytest.mark.parametrize("kept", [0.3, 0.5, 0.9, 0.999])
def test_a_flac_file_that_is_cut_off_is_read_for_what_is_there(promised: int | None, kept: float) -> None:
    data = flac(promised)

    found = read_audio(data[: int(len(data) * kept)], LIMITS).samples

    frames = found.shape[1]
    assert kept * SONG.shape[1] - 3 * 4_096 < frames < SONG.shape[1]
    np.testing.assert_array_equal(found, SONG[:, :frames])


def test_a_flac_file_that_is_cut_off_before_its_sound_is_refused() -> None:
    for size in (4, 20, 42, 100, 500):
        with pytest.raises(AudioError, match=r"broken|no samples"):
            check_audio(flac()[:size], LIMITS)


def test_a_flac_file_that_is_damaged_in_its_middle_is_refused() -> None:
    data = bytearray(flac())
    middle = len(data) // 2
    data[middle : middle + 4] = b"\x55\xaa\x55\xaa"

    with pytest.raises(AudioError, match="broken"):
        check_audio(bytes(data), LIMITS)


@pytest.mark.parametrize("audio_format", ["wav", "wav32", "ogg", "opus"])
def test_a_wav_or_ogg_file_that_ends_early_counts_as_what_is_there(audio_format: AudioFormat) -> None:
    data = encode_audio(np.tile(SONG, 6), audio_format, {})

    assert 0 < check_audio(data[: len(data) // 2], LIMITS).frames < 6 * SONG.shape[1]


@pytest.mark.parametrize("before", [b"\r\n", b"\xef\xbb\xbf", bytes(2_048), b"\n\n\t"])
@pytest.mark.parametrize("audio_format", ["wav", "flac", "ogg", "opus"])
def test_line_ends_and_zeros_before_a_file_of_any_kind_are_skipped(before: bytes, audio_format: AudioFormat) -> None:
    data = encode_audio(SONG, audio_format, {})

    assert check_audio(before + data, LIMITS) == check_audio(data, LIMITS)


def test_mp3_in_a_wav_file_is_read_to_its_end() -> None:
    layout = struct.pack("<HHIIHHH", 0x55, 2, RATE_HZ, 24_000, 1, 0, 12) + struct.pack("<HIHHH", 1, 2, 576, 1, 1_393)
    for size in (None, 0, UNKNOWN):
        sound = encode_audio(SONG, "mp3", {})
        told = len(sound) if size is None else size
        head = b"RIFF" + bytes(4) + b"WAVEfmt " + struct.pack("<I", len(layout)) + layout
        assert check_audio(head + b"data" + struct.pack("<I", told) + sound, LIMITS).frames == SONG.shape[1]


@pytest.mark.parametrize("codec", ["VORBIS", "OPUS"])
def test_ogg_files_that_were_joined_are_read_to_the_end_of_the_last(codec: str) -> None:
    part = bytes(file_of("OGG", codec))
    alone, three = read_audio(part, AudioLimits()).samples, read_audio(part * 3, AudioLimits()).samples
    assert np.array_equal(three, np.tile(alone, 3))
    assert check_audio(part * 3, AudioLimits()).frames == 3 * alone.shape[1]
    cut = part * 2 + part[: len(part) // 2]
    assert 2 * alone.shape[1] <= check_audio(cut, AudioLimits()).frames < 3 * alone.shape[1]


def test_joined_ogg_files_of_other_layouts_are_refused_and_long_ones_are_too_long() -> None:
    stereo, mono = bytes(file_of("OGG", "VORBIS")), bytes(file_of("OGG", "VORBIS", SONG[:1]))
    with pytest.raises(AudioError, match="several with other channels or sample rates"):
        check_audio(stereo + mono, AudioLimits())
    with pytest.raises(AudioTooLargeError):
        check_audio(stereo * 50, AudioLimits(max_duration_s=2.5 * SONG.shape[1] / RATE_HZ))
