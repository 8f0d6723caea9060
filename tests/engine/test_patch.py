"""The folded patch embedding beside the three modules that it is made of."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from acestep_engine.model.patch import PatchEmbedding
from tests.engine.plain import embed_patches
from tests.engine.small import draw_weights, folded, latents
from tests.parity import relative_error

pytestmark = pytest.mark.usefixtures("one_thread")

CHANNELS, HEIGHT, HIDDEN, DIM = 8, 16, 128, 24


def loaded(seed: int = 0) -> PatchEmbedding:
    with torch.device("meta"):
        patch = PatchEmbedding(CHANNELS, HEIGHT, HIDDEN, DIM)
    draw_weights(patch, seed)
    return patch


def error(song: Tensor, seed: int = 0) -> float:
    """Of the folded embedding against convolution, group norm and convolution in double precision."""
    patch = loaded(seed)
    return relative_error(folded(patch)([song])[0], embed_patches(patch.double(), song))


@pytest.mark.parametrize("frames", [1, 2, 3, 50, 400])
def test_the_folded_map_is_convolution_norm_and_convolution(frames: int) -> None:
    assert error(latents(frames)) <= 1e-5


@given(
    frames=st.integers(1, 40),
    offset=st.floats(-300.0, 300.0),
    exponent=st.floats(-4.0, 4.0),
    seed=st.integers(0, 2**16),
)
def test_neither_offset_nor_scale_of_the_latents_costs_precision(
    frames: int, offset: float, exponent: float, seed: int
) -> None:
    assert error((latents(frames, seed) + offset) * 10**exponent, seed) <= 1e-5


@pytest.mark.parametrize("level", [0.0, 1.0, -1e4])
def test_a_song_that_never_changes_is_embedded_the_same(level: float) -> None:
    assert error(torch.full((CHANNELS, HEIGHT, 7), level)) <= 1e-5


def test_a_channel_that_is_far_off_leaves_the_others_precise() -> None:
    song = latents(20)
    song[3] += 1000.0
    assert error(song) <= 1e-5


def test_songs_embedded_together_do_not_touch_each_other() -> None:
    patch = folded(loaded())
    songs = [latents(5, seed=1), latents(9, seed=2) * 100, torch.full_like(latents(4), torch.nan)]
    for song, tokens in zip(songs[:2], patch(songs), strict=False):
        assert relative_error(tokens, patch([song])[0]) <= 1e-6


def test_tokens_are_answered_in_the_precision_of_the_weights() -> None:
    patch = loaded()
    half = folded(patch.bfloat16())
    (tokens,) = half([latents(9)])
    assert tokens.dtype == torch.bfloat16
    assert relative_error(tokens, embed_patches(patch.double(), latents(9))) < 0.02
