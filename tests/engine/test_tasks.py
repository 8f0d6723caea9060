from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acestep_engine import tasks
from acestep_engine.errors import ParameterError
from acestep_engine.params import SCHEDULERS, GenerationParams, SchedulerType, latent_frames
from acestep_engine.tasks import CONDITIONED, ERG_QUERY_SCALE, TEXT_ONLY, UNCONDITIONED, TaskState

CPU = torch.device("cpu")
PARAMS = GenerationParams("funk", "", 4.0, seed=1, steps=8)
REFERENCE = torch.randn(8, 16, 12, generator=torch.Generator().manual_seed(5))


def begin(params: GenerationParams, reference: torch.Tensor | None = None) -> TaskState:
    return tasks.begin(params, reference, CPU, torch.float32)


def rows(task: TaskState) -> list[list[int]]:
    """The context rows that each forward of a whole request asks for."""
    asked = []
    while task.forwards_done < task.forwards:
        queries = task.queries()
        asked.append([query.row for query in queries])
        task = task.advance([torch.zeros_like(query.latents) for query in queries])
    return asked


def test_only_the_middle_half_is_guided() -> None:
    pair = [CONDITIONED, UNCONDITIONED]
    assert rows(begin(PARAMS)) == [[CONDITIONED]] * 2 + [pair] * 4 + [[CONDITIONED]] * 2


def test_double_guidance_asks_for_the_prompt_without_lyrics_as_well() -> None:
    asked = rows(begin(replace(PARAMS, guidance_scale_text=5.0, guidance_scale_lyric=1.5)))
    assert asked[3] == [CONDITIONED, UNCONDITIONED, TEXT_ONLY]


def test_without_guidance_one_row_is_enough() -> None:
    assert rows(begin(replace(PARAMS, guidance_scale=1.0))) == [[CONDITIONED]] * 8


@given(
    steps=st.integers(1, 20),
    scheduler=st.sampled_from(SCHEDULERS),
    guidance_scale=st.sampled_from([1.0, 7.0]),
    guidance_interval=st.floats(0.0, 1.0),
    guidance_scale_text=st.sampled_from([0.0, 5.0]),
)
def test_the_rows_left_are_those_that_are_asked_for_from_now_on(steps: int, **options: Any) -> None:
    task = begin(replace(PARAMS, duration_s=0.1, steps=steps, guidance_scale_lyric=1.5, **options))
    left, asked = [], []
    while task.forwards_done < task.forwards:
        left.append(task.rows_left)
        asked.append(len(task.queries()))
        task = task.advance([torch.zeros_like(query.latents) for query in task.queries()])
    assert left == [sum(asked[i:]) for i in range(len(asked))]
    assert task.rows_left == 0


@pytest.mark.parametrize(("use_erg_diffusion", "scale"), [(True, ERG_QUERY_SCALE), (False, 1.0)])
def test_erg_weakens_only_the_unconditioned_row(use_erg_diffusion: bool, scale: float) -> None:
    task = begin(replace(PARAMS, guidance_interval=1.0, use_erg_diffusion=use_erg_diffusion))
    assert [query.query_scale for query in task.queries()] == [1.0, scale]


def test_the_first_latents_are_the_seeds_own_noise() -> None:
    first = begin(PARAMS).latents
    assert first.shape == (8, 16, latent_frames(4.0))
    torch.testing.assert_close(begin(PARAMS).latents, first, rtol=0, atol=0)
    assert not torch.equal(begin(replace(PARAMS, seed=2)).latents, first)


def test_a_request_does_not_touch_the_global_generator() -> None:
    before = torch.get_rng_state()
    rows(begin(replace(PARAMS, scheduler="pingpong")))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_state_can_be_advanced_again_to_the_same_next_one(scheduler: SchedulerType) -> None:
    """A forward that fails for want of memory is done again."""
    task = begin(replace(PARAMS, scheduler=scheduler, guidance_interval=1.0))
    for _ in range(3):
        velocities = [torch.full_like(query.latents, 0.5 - query.row) for query in task.queries()]
        first, again = task.advance(velocities), task.advance(velocities)
        torch.testing.assert_close(again.latents, first.latents, rtol=0, atol=0)
        task = first


def test_the_largest_seed_is_accepted() -> None:
    begin(replace(PARAMS, seed=2**64 - 1))


def test_audio2audio_has_the_length_of_its_reference() -> None:
    assert begin(replace(PARAMS, task="audio2audio"), REFERENCE).latents.shape == REFERENCE.shape


def test_the_stronger_the_reference_the_fewer_steps_and_the_closer_the_start() -> None:
    found = [begin(replace(PARAMS, task="audio2audio", ref_audio_strength=s), REFERENCE) for s in (0.25, 0.5, 0.75)]
    assert [task.forwards for task in found] == [6, 4, 2]
    distances = [(task.latents - REFERENCE).norm().item() for task in found]
    assert distances == sorted(distances, reverse=True)


def test_a_reference_of_full_strength_comes_back_as_it_is() -> None:
    task = begin(replace(PARAMS, task="audio2audio", ref_audio_strength=1.0), REFERENCE)
    assert task.forwards == 0
    torch.testing.assert_close(task.latents, REFERENCE)


def test_noise_is_never_left_without_a_step_to_remove_it() -> None:
    """8 steps at strength 0.95 would round to none."""
    assert begin(replace(PARAMS, task="audio2audio", ref_audio_strength=0.95), REFERENCE).forwards == 1


def test_audio2audio_without_a_reference_is_refused() -> None:
    with pytest.raises(ParameterError, match="ref_audio_input"):
        begin(replace(PARAMS, task="audio2audio"))


def test_a_task_that_is_not_built_says_which_are() -> None:
    with pytest.raises(ParameterError, match="text2music, audio2audio"):
        begin(replace(PARAMS, task="repaint"))
