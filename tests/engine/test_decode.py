"""Decoding beyond what test_parity.py compares with the published figures."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acestep_engine.decode import LATENT_WINDOW, decode_latents, latent_windows
from acestep_engine.errors import LatentShapeError, NumericalError
from acestep_engine.model.autoencoder import MusicAutoencoder


@pytest.fixture(scope="module")
def autoencoder(tiny_checkpoint: Path) -> MusicAutoencoder:
    return MusicAutoencoder.load(tiny_checkpoint, torch.device("cpu"), torch.float32)


def test_overlapped_decoding_of_a_short_song_has_its_length(autoencoder: MusicAutoencoder) -> None:
    latents = torch.randn(8, 16, 2, generator=torch.Generator().manual_seed(0))

    audio = decode_latents(autoencoder, latents, overlapped=True)

    assert audio.shape == (2, 2 * 4096 * 48_000 // 44_100)


@given(frames=st.integers(1, 4_000))
def test_latent_windows_keep_every_frame_once(frames: int) -> None:
    windows = list(latent_windows(frames))

    assert windows[0].keep_start == 0
    assert windows[-1].keep_stop == frames
    for before, after in pairwise(windows):
        assert before.keep_stop == after.keep_start
    for window in windows:
        assert 0 <= window.start <= window.keep_start < window.keep_stop <= window.stop <= frames
        assert window.stop - window.start <= LATENT_WINDOW


@pytest.mark.parametrize("shape", [(8, 16, 0), (8, 8, 5), (4, 16, 5), (1, 8, 16, 5), (128, 5), (5,)])
@pytest.mark.parametrize("overlapped", [False, True])
def test_latents_of_another_shape_are_refused(
    autoencoder: MusicAutoencoder, shape: tuple[int, ...], overlapped: bool
) -> None:
    with pytest.raises(LatentShapeError, match=r"expected \(8, 16, T >= 1\)"):
        decode_latents(autoencoder, torch.zeros(shape), overlapped=overlapped)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_latents_that_are_not_finite_are_refused(autoencoder: MusicAutoencoder, value: float) -> None:
    latents = torch.zeros(8, 16, 3)
    latents[0, 3, 1] = value

    with pytest.raises(NumericalError, match="latents"):
        decode_latents(autoencoder, latents)


def test_a_decoder_that_overflows_is_a_numerical_error(autoencoder: MusicAutoencoder) -> None:
    with pytest.raises(NumericalError, match="decoder"):
        decode_latents(autoencoder, torch.full((8, 16, 2), 3e38))
