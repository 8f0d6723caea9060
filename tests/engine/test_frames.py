"""Seconds, samples and latent frames are counted in whole numbers, so that no frame is lost or made up by rounding."""

from dataclasses import replace
from math import ceil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acestep_engine import tasks
from acestep_engine.audio import SourceAudio
from acestep_engine.params import (
    MAX_LATENT_FRAMES,
    GenerationParams,
    decoded_frames,
    encoded_frames,
    latent_duration_s,
    latent_frames,
    longest_source_samples,
)
from acestep_engine.requests import Inputs
from tests.engine.small import conditioning, small_autoencoder, small_engine

CPU = torch.device("cpu")
PARAMS = GenerationParams("", "", 1.0, seed=1, steps=2)
EVERY_LENGTH = range(1, MAX_LATENT_FRAMES + 1)


def published_frames(duration_s: float) -> int:
    return int(duration_s * 44100 / 512 / 8)


def test_whole_milliseconds_have_the_published_frames() -> None:
    assert MAX_LATENT_FRAMES == published_frames(240.0) == 2583
    for milliseconds in range(240_001):
        assert latent_frames(milliseconds / 1000) == published_frames(milliseconds / 1000)


@given(st.floats(0.0, 240.0))
def test_any_duration_has_the_published_frames_or_the_one_that_rounding_took_from_them(duration_s: float) -> None:
    found, published = latent_frames(duration_s), published_frames(duration_s)
    assert found == published or (found == published + 1 and latent_duration_s(found) == pytest.approx(duration_s))


def test_the_duration_of_whole_frames_has_these_frames() -> None:
    assert [latent_frames(latent_duration_s(frames)) for frames in EVERY_LENGTH] == list(EVERY_LENGTH)


@pytest.mark.parametrize("rate_hz", [22_050, 44_100, 88_200])
def test_a_source_of_whole_frames_is_encoded_to_these_frames(rate_hz: int) -> None:
    found = [encoded_frames(frames * 4096 * rate_hz // 44_100, rate_hz) for frames in EVERY_LENGTH]
    assert found == list(EVERY_LENGTH)


@given(samples=st.integers(1, 240 * 8000), rate_hz=st.sampled_from([8_000, 44_101, 48_000, 192_000]))
def test_a_source_is_encoded_to_the_frames_that_hold_all_of_it(samples: int, rate_hz: int) -> None:
    frames = encoded_frames(samples, rate_hz)
    assert (frames - 1) * 4096 * rate_hz < samples * 44_100 <= frames * 4096 * rate_hz


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 44_100, 44_101, 48_000, 192_000])
def test_the_longest_source_is_as_long_as_the_longest_song(rate_hz: int) -> None:
    assert encoded_frames(longest_source_samples(rate_hz), rate_hz) == MAX_LATENT_FRAMES


@pytest.mark.parametrize("rounded", [ceil, int])
def test_a_finished_song_has_the_frames_that_it_was_decoded_from(rounded: type[int]) -> None:
    """Decoding rounds its samples at 48 kHz up, or down where windows overlap."""
    durations = [rounded(latent_duration_s(frames) * 48_000) / 48_000 for frames in EVERY_LENGTH]
    assert [decoded_frames(duration_s) for duration_s in durations] == list(EVERY_LENGTH)


@pytest.mark.parametrize("frames", [13, 15, 26])
def test_the_latents_of_a_source_are_as_many_as_were_counted(frames: int) -> None:
    samples = frames * 4096
    assert small_autoencoder().encode(torch.zeros(2, samples), 44_100).shape[-1] == encoded_frames(samples, 44_100)


@pytest.mark.parametrize("frames", [13, 15, 23, 30])
def test_a_song_can_be_repainted_to_its_very_end(frames: int) -> None:
    source = torch.ones(8, 16, frames)
    params = replace(PARAMS, task="repaint", repaint_start_s=0.2, repaint_end_s=latent_duration_s(frames))
    state = tasks.begin(params, source, CPU)
    assert bool(state.mask[-1])  # type: ignore[attr-defined]


@pytest.mark.parametrize("frames", [13, 15, 23, 30])
@pytest.mark.parametrize("added", [1, 15, 30])
def test_a_song_is_extended_by_as_many_frames_as_were_asked_for(frames: int, added: int) -> None:
    added_s = latent_duration_s(added)
    for left_s, right_s in ((added_s, 0.0), (0.0, added_s), (added_s, added_s)):
        duration_s = left_s + latent_duration_s(frames) + right_s
        params = replace(PARAMS, task="extend", duration_s=duration_s, left_extend_s=left_s, right_extend_s=right_s)
        state = tasks.begin(params, torch.ones(8, 16, frames), CPU)
        assert state.latents.shape[-1] == frames + latent_frames(left_s) + latent_frames(right_s)


def test_what_is_past_the_longest_song_is_left_out_of_a_source() -> None:
    source = SourceAudio(np.zeros((2, 241 * 8_000), np.float32), 8_000)
    params = replace(PARAMS, task="audio2audio", ref_audio_strength=1.0)
    engine = small_engine()
    engine.add("long", params, Inputs(conditioning(), None, source))
    engine.step()
    (request,) = engine._requests.values()
    assert request.task is not None
    assert request.task.latents.shape[-1] == MAX_LATENT_FRAMES
