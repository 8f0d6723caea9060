"""The published windows, one at a time: what they give together, written down plainly."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from acestep_engine.decode import Decoding, decode_latents
from acestep_engine.decode_overlapped import (
    AUDIO_OVERLAP,
    CROSSFADE,
    LATENT_WINDOW,
    MEL_HOP,
    MEL_WINDOW,
    latent_windows,
)
from acestep_engine.model.autoencoder import MEL_MAX, MEL_MIN
from tests.engine.small import latents, small_autoencoder
from tests.parity import relative_error

pytestmark = pytest.mark.usefixtures("one_thread")


@torch.inference_mode()
def overlapped_plainly(song: Tensor, sample_rate_hz: int) -> Tensor:
    """All of the mel, then all of the audio, then all of it resampled."""
    codec = small_autoencoder()
    mels = []
    for window in latent_windows(song.shape[-1]):
        image = codec.dcae.decoder(codec.latents_to_image(song[..., window.start : window.stop]))[0]
        kept = image[..., 8 * (window.keep_start - window.start) : 8 * (window.keep_stop - window.start)]
        mels.append((kept * 0.5 + 0.5) * (MEL_MAX - MEL_MIN) + MEL_MIN)
    mel = torch.cat(mels, dim=-1)
    whole = torch.zeros(2, 0)
    for start in range(0, mel.shape[-1], MEL_HOP):
        block = mel[..., start : start + MEL_WINDOW]
        audio = codec.vocoder(F.pad(block, (0, MEL_WINDOW - block.shape[-1]))).squeeze(1)
        if start == 0:
            whole = audio
            continue
        seam = whole.shape[-1] - AUDIO_OVERLAP
        fade = torch.linspace(0, 1, CROSSFADE)
        faded = whole[:, seam - CROSSFADE : seam] * fade.flip(0)
        faded += audio[:, AUDIO_OVERLAP - CROSSFADE : AUDIO_OVERLAP] * fade
        whole = torch.cat([whole[:, : seam - CROSSFADE], faded, audio[:, AUDIO_OVERLAP:]], dim=-1)
    resampled = codec.resample(whole, 44_100, sample_rate_hz)
    return resampled[:, : song.shape[-1] * 4096 * sample_rate_hz // 44_100]


@pytest.mark.parametrize("frames", [1, 63, 64, 65, 512, 513, 600, 800])
@pytest.mark.parametrize("sample_rate_hz", [48_000, 44_100])
def test_windows_one_at_a_time_give_what_they_give_together(frames: int, sample_rate_hz: int) -> None:
    song = latents(frames)

    audio = decode_latents(small_autoencoder(), song, overlapped=True, sample_rate_hz=sample_rate_hz)

    assert relative_error(audio, overlapped_plainly(song, sample_rate_hz)) < 1e-5


def test_a_song_of_several_windows_differs_a_little_from_one_that_attends_to_itself_all_over() -> None:
    song = latents(600)

    overlapped = decode_latents(small_autoencoder(), song, overlapped=True)
    whole = decode_latents(small_autoencoder(), song)[:, : overlapped.shape[-1]]

    assert 1e-5 < relative_error(overlapped, whole) < 0.5


def test_a_long_song_has_many_windows_of_bounded_cost() -> None:
    decoding = Decoding(small_autoencoder(), latents(1100), overlapped=True)

    while decoding.windows_done < decoding.windows:
        assert decoding.next_frames <= 52  # five seconds' worth
        decoding.advance()

    assert decoding.windows > 20


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
