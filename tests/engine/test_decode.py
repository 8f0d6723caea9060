"""Decoding in windows: the audio of the whole song, whatever its length, and whoever else is decoded in between."""

import random
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from acestep_engine import decode, decode_units
from acestep_engine.decode import Decoding, check_finite, decode_latents
from acestep_engine.errors import LatentShapeError, NumericalError
from acestep_engine.model import tiles
from acestep_engine.model.autoencoder import MEL_MAX, MEL_MIN, MusicAutoencoder, build_dcae, build_vocoder
from acestep_engine.model.mel import LogMel, MelConfig
from acestep_engine.params import MODEL_SAMPLE_RATE_HZ
from tests.engine.small import CPU, DCAE, VOCODER, draw_weights, latents
from tests.parity import relative_error

pytestmark = pytest.mark.usefixtures("one_thread")

WIDE = {"resblock_kernel_sizes": [3, 7], "resblock_dilation_sizes": [[1, 3], [1, 5]], "pre_conv_kernel_size": 13}
FIRST, SHORT, WINDOW = 2, 8, 5  # latent frames, in these tests


@cache
def autoencoder(dtype: torch.dtype = torch.float32) -> MusicAutoencoder:
    """Whose vocoder hears more than two latent frames on either side."""
    dcae, vocoder = build_dcae(DCAE), build_vocoder(VOCODER | WIDE)
    for seed, module in enumerate((dcae, vocoder)):
        draw_weights(module, seed)
    return MusicAutoencoder(dcae.to(dtype), vocoder.to(dtype), LogMel(MelConfig()), CPU, dtype)


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    set_windows(monkeypatch, FIRST, SHORT, WINDOW, WINDOW + 2, 7)


def set_windows(monkeypatch: pytest.MonkeyPatch, first: int, short: int, audio: int, mel: int, tile: int) -> None:
    monkeypatch.setattr(decode, "FIRST_WINDOW", first)
    monkeypatch.setattr(decode, "SHORT_SONG", short)
    monkeypatch.setattr(decode, "AUDIO_WINDOW", audio)
    monkeypatch.setattr(decode_units, "MEL_WINDOW", mel)
    monkeypatch.setattr(decode_units, "ATTENDED_AT_ONCE", 2 * short)
    monkeypatch.setattr(tiles, "TILE_COLUMNS", tile)


@torch.inference_mode()
def decoded_in_one_piece(song: Tensor, sample_rate_hz: int) -> Tensor:
    """The song (8, 16, T) through the whole decoder, the whole vocoder and the whole resampling."""
    codec = autoencoder()
    image = codec.dcae.decoder(codec.latents_to_image(song))[0]
    mel = (image * 0.5 + 0.5) * (MEL_MAX - MEL_MIN) + MEL_MIN
    audio = codec.vocoder(mel).squeeze(1)
    return codec.resample(audio, MODEL_SAMPLE_RATE_HZ, sample_rate_hz)


def advanced_by_turns(decodings: list[Decoding]) -> list[Tensor]:
    """The audio of each, a window of each in turn until all are done."""
    parts: list[list[Tensor]] = [[] for _ in decodings]
    while any(decoding.windows_done < decoding.windows for decoding in decodings):
        for decoding, heard in zip(decodings, parts, strict=True):
            if decoding.windows_done < decoding.windows and (audio := decoding.advance()) is not None:
                heard.append(audio)
    return [torch.cat(heard, dim=-1) for heard in parts]


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("frames", [1, 2, SHORT, SHORT + 1, 2 * WINDOW, 2 * WINDOW + 1, 8 * WINDOW - 1, 60])
@pytest.mark.parametrize("sample_rate_hz", [48_000, 44_100, 16_000])
def test_windows_give_the_audio_of_the_whole_song(frames: int, sample_rate_hz: int) -> None:
    song = latents(frames)

    audio = decode_latents(autoencoder(), song, sample_rate_hz=sample_rate_hz)

    assert relative_error(audio, decoded_in_one_piece(song, sample_rate_hz)) < 1e-5


def test_a_short_song_takes_one_window_of_each_kind_and_is_exactly_as_in_one_piece() -> None:
    song = latents(30)
    decoding = Decoding(autoencoder(), song)

    (audio,) = advanced_by_turns([decoding])

    assert decoding.windows == 3  # attention, mel, audio
    assert torch.equal(audio, decoded_in_one_piece(song, 48_000))


@pytest.mark.parametrize("overlapped", [False, True])
def test_the_first_audio_is_there_after_a_small_part_of_the_work(overlapped: bool) -> None:
    decoding = Decoding(autoencoder(), latents(646), overlapped=overlapped)  # 60 s
    whole = decoding.frames_left

    while (audio := decoding.advance()) is None:
        pass

    assert decoding.frames_left > 0.8 * whole
    assert audio.shape[-1] > 48_000


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("overlapped", [False, True])
def test_what_comes_first_is_the_beginning_and_all_of_it_has_the_length_that_was_said(overlapped: bool) -> None:
    song = latents(600)
    decoding = Decoding(autoencoder(), song, overlapped=overlapped)

    parts = [audio for _ in range(decoding.windows) if (audio := decoding.advance()) is not None]

    assert len(parts) > 5
    assert torch.equal(torch.cat(parts, dim=-1), decode_latents(autoencoder(), song, overlapped=overlapped))
    assert sum(part.shape[-1] for part in parts) == decoding.samples


@pytest.mark.usefixtures("small_windows")
def test_the_audio_is_no_less_exact_at_the_seams() -> None:
    song = latents(6 * WINDOW)

    error = (decode_latents(autoencoder(), song) - decoded_in_one_piece(song, 48_000)).abs()

    seams = [index * WINDOW * 4096 * 48_000 // 44_100 for index in range(1, 6)]
    at_seams = torch.cat([error[:, seam - 512 : seam + 512] for seam in seams], dim=-1)
    assert error.max() < 1e-5
    assert at_seams.mean() < 2 * error.mean() + 1e-7


@given(
    frames=st.integers(1, 40),
    first=st.integers(1, 12),
    short=st.integers(1, 12),
    audio=st.integers(1, 12),
    mel=st.integers(1, 12),
    tile=st.integers(1, 12),
)
@settings(max_examples=25)
def test_windows_of_any_size_give_the_audio_of_the_whole_song(
    frames: int, first: int, short: int, audio: int, mel: int, tile: int
) -> None:
    song = latents(frames)
    with pytest.MonkeyPatch.context() as patch:
        set_windows(patch, first, short, audio, mel, tile)
        decoded = decode_latents(autoencoder(), song)

    assert relative_error(decoded, decoded_in_one_piece(song, 48_000)) < 1e-5


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("overlapped", [False, True])
def test_songs_decoded_by_turns_are_as_those_decoded_one_after_the_other(overlapped: bool) -> None:
    songs = [latents(frames, seed=frames) for frames in (23, 4, 31)]
    alone = [decode_latents(autoencoder(), song, overlapped=overlapped) for song in songs]

    decodings = [Decoding(autoencoder(), song, overlapped=overlapped) for song in songs]

    for found, expected in zip(advanced_by_turns(decodings), alone, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("overlapped", [False, True])
def test_a_window_that_fails_for_want_of_memory_can_be_tried_again(overlapped: bool) -> None:
    song, dice, failures = latents(14), random.Random(0), 0
    expected = decode_latents(autoencoder(), song, overlapped=overlapped)

    def fails_sometimes(module: nn.Module, args: object, output: object) -> None:
        if dice.random() < 0.02:
            raise torch.OutOfMemoryError("not enough memory")

    decoding = Decoding(autoencoder(), song, overlapped=overlapped)
    parts: list[Tensor] = []
    hook = register_module_forward_hook(fails_sometimes)
    try:
        while decoding.windows_done < decoding.windows:
            done = decoding.windows_done
            try:
                audio = decoding.advance()
            except torch.OutOfMemoryError:
                failures += 1
                assert decoding.windows_done == done
            else:
                parts += [] if audio is None else [audio]
    finally:
        hook.remove()

    assert failures > 0
    assert torch.equal(torch.cat(parts, dim=-1), expected)


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("overlapped", [False, True])
def test_what_is_left_is_told_in_latent_frames_and_shrinks_by_every_window(overlapped: bool) -> None:
    decoding = Decoding(autoencoder(), latents(600), overlapped=overlapped)
    at_first = left = decoding.frames_left

    while left > 0:
        cost, done = decoding.next_frames, decoding.windows_done
        decoding.advance()
        assert decoding.windows_done == done + 1
        assert decoding.frames_left == left - cost < left
        left = decoding.frames_left

    assert 550 <= at_first <= 850
    assert decoding.windows_done == decoding.windows
    assert decoding.next_frames == 0


def test_decoding_beyond_the_end_is_a_mistake() -> None:
    decoding = Decoding(autoencoder(), latents(1))

    advanced_by_turns([decoding])
    with pytest.raises(AssertionError, match="decoded"):
        decoding.advance()


def test_bfloat16_weights_decode_to_float32() -> None:
    audio = decode_latents(autoencoder(torch.bfloat16), latents(10))

    assert audio.dtype == torch.float32
    assert relative_error(audio, decoded_in_one_piece(latents(10), 48_000)) < 0.1


@pytest.mark.parametrize("shape", [(8, 16, 0), (8, 8, 5), (4, 16, 5), (1, 8, 16, 5), (128, 5), (5,)])
@pytest.mark.parametrize("overlapped", [False, True])
def test_latents_of_another_shape_are_refused(shape: tuple[int, ...], overlapped: bool) -> None:
    with pytest.raises(LatentShapeError, match=r"expected \(8, 16, T >= 1\)"):
        Decoding(autoencoder(), torch.zeros(shape), overlapped=overlapped)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_latents_that_are_not_finite_are_refused(value: float) -> None:
    song = torch.zeros(8, 16, 3)
    song[0, 3, 1] = value

    with pytest.raises(NumericalError, match="latents"):
        Decoding(autoencoder(), song)


@pytest.mark.parametrize("overlapped", [False, True])
def test_a_decoder_that_overflows_is_a_numerical_error(overlapped: bool) -> None:
    decoding = Decoding(autoencoder(), torch.full((8, 16, 2), 3e38), overlapped=overlapped)

    (audio,) = advanced_by_turns([decoding])

    with pytest.raises(NumericalError, match="decoder"):
        check_finite(audio)


@pytest.mark.usefixtures("small_windows")
def test_the_published_sizes_decode_in_windows_too(tiny_checkpoint: Path) -> None:
    codec = MusicAutoencoder.load(tiny_checkpoint, CPU, torch.float32)
    song = latents(2 * SHORT + 1)

    in_windows = decode_latents(codec, song)
    with pytest.MonkeyPatch.context() as patch:
        set_windows(patch, 100, 100, 100, 100, 100)
        whole = decode_latents(codec, song)

    assert relative_error(in_windows, whole) < 1e-5
