from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acestep_engine import tasks
from acestep_engine.errors import ParameterError
from acestep_engine.params import SCHEDULERS, SOURCE_TASKS, GenerationParams, SchedulerType, Task, latent_frames
from acestep_engine.tasks.edit import SOURCE, SOURCE_NOTHING, TARGET, TARGET_NOTHING
from acestep_engine.tasks.guided import ERG_QUERY_SCALE
from acestep_engine.tasks.state import CONDITIONED, TEXT_ONLY, UNCONDITIONED, TaskState

CPU = torch.device("cpu")
PARAMS = GenerationParams("funk", "", 4.0, seed=1, steps=8)
REFERENCE = torch.randn(8, 16, 12, generator=torch.Generator().manual_seed(5))


def begin(params: GenerationParams, reference: torch.Tensor | None = None) -> TaskState:
    return tasks.begin(params, reference, CPU)


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
        assert task.rows == len(task.queries())
        left.append(task.rows_left)
        asked.append(task.rows)
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


@pytest.mark.parametrize("task", SOURCE_TASKS)
def test_a_task_without_the_source_it_needs_is_refused(task: Task) -> None:
    with pytest.raises(ParameterError, match=f"{task} needs a source"):
        begin(replace(PARAMS, task=task))


@pytest.mark.parametrize("task", [*SOURCE_TASKS, "retake"])
def test_the_rows_left_and_the_forwards_done_of_every_task_add_up(task: Task) -> None:
    params = replace(PARAMS, task=task, edit_n_min=0.2, edit_n_max=0.7, edit_n_avg=3, repaint_end_s=0.5)
    state = begin(replace(params, right_extend_s=1.0, duration_s=3.0, steps=7), REFERENCE)
    left, asked = [], []
    for done in range(state.forwards):
        assert state.forwards_done == done
        assert state.rows == len(state.queries())
        left.append(state.rows_left)
        asked.append(state.rows)
        velocities = [torch.full_like(query.latents, 0.5) for query in state.queries()]
        again = state.advance(velocities)
        state = state.advance(velocities)
        torch.testing.assert_close(again.latents, state.latents, rtol=0, atol=0)
    assert left == [sum(asked[i:]) for i in range(len(asked))]
    assert state.forwards_done == state.forwards


RETAKE = replace(PARAMS, task="retake", retake_seed=9)


def test_a_retake_begins_between_the_noises_of_its_two_seeds() -> None:
    first, other = begin(PARAMS).latents, begin(replace(PARAMS, seed=9)).latents
    torch.testing.assert_close(begin(replace(RETAKE, retake_variance=0.0)).latents, first)
    torch.testing.assert_close(begin(replace(RETAKE, retake_variance=1.0)).latents, other)
    halfway = begin(replace(RETAKE, retake_variance=0.5)).latents
    torch.testing.assert_close(halfway, (first + other) / 2**0.5)


REPAINT = replace(PARAMS, task="repaint", retake_seed=3, repaint_start_s=0.4, repaint_end_s=0.8)  # frames 4 to 8 of 12


def finished(task: TaskState) -> torch.Tensor:
    """The latents after forwards that all answer with the same noise."""
    velocity = torch.randn(task.latents.shape, generator=torch.Generator().manual_seed(8))
    while task.forwards_done < task.forwards:
        task = task.advance([velocity + query.row for query in task.queries()])
    return task.latents


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_what_is_not_repainted_is_the_source_to_the_last_bit(scheduler: SchedulerType) -> None:
    latents = finished(begin(replace(REPAINT, scheduler=scheduler), REFERENCE))
    changed = (latents != REFERENCE).any(dim=0).any(dim=0)
    assert changed.nonzero().flatten().tolist() == [4, 5, 6, 7]


def test_the_smaller_the_variance_the_fewer_steps_and_the_closer_to_the_source() -> None:
    found = [begin(replace(REPAINT, retake_variance=v), REFERENCE) for v in (1.0, 0.5, 0.25, 0.0)]
    assert [task.forwards for task in found] == [8, 4, 2, 1]
    distances = [(task.latents - REFERENCE).norm().item() for task in found]
    assert distances == sorted(distances, reverse=True)


def test_repainting_all_of_a_song_is_a_retake_of_its_length() -> None:
    whole = begin(replace(REPAINT, repaint_start_s=0.0, repaint_end_s=1.2), REFERENCE)
    assert whole.latents.shape == REFERENCE.shape
    retake = begin(replace(RETAKE, retake_seed=3, duration_s=1.2))
    torch.testing.assert_close(whole.latents, retake.latents, rtol=0, atol=0)


@pytest.mark.parametrize(("start_s", "end_s"), [(0.8, 0.4), (0.5, 0.5), (0.4, 2.0), (-1.0, 0.5)])
def test_a_range_that_is_not_in_the_source_is_refused(start_s: float, end_s: float) -> None:
    with pytest.raises(ParameterError, match="repaint_end"):
        begin(replace(REPAINT, repaint_start_s=start_s, repaint_end_s=end_s), REFERENCE)


EXTEND = replace(PARAMS, task="extend", retake_seed=3, retake_variance=1.0)


@pytest.mark.parametrize(("left_s", "right_s"), [(0.5, 0.0), (0.0, 0.5), (0.5, 1.0), (9.0, 0.3), (0.0, 30.0)])
def test_an_extended_song_holds_its_source_to_the_last_bit(left_s: float, right_s: float) -> None:
    duration_s = REFERENCE.shape[-1] * 4096 / 44_100 + left_s + right_s
    task = begin(replace(EXTEND, left_extend_s=left_s, right_extend_s=right_s, duration_s=duration_s), REFERENCE)
    latents = finished(task)
    assert latents.shape[-1] in (latent_frames(duration_s), latent_frames(duration_s) - 1)
    left = latent_frames(left_s)
    kept = latents[..., left : left + REFERENCE.shape[-1]]
    torch.testing.assert_close(kept, REFERENCE, rtol=0, atol=0)
    added = torch.cat([latents[..., :left], latents[..., left + REFERENCE.shape[-1] :]], dim=-1)
    assert added.shape[-1] > 0
    assert added.unique(dim=-1).shape == added.shape  # no noise is used twice


def test_extending_past_the_longest_song_or_by_nothing_is_refused() -> None:
    with pytest.raises(ParameterError, match="240 s"):
        begin(replace(EXTEND, right_extend_s=239.0, duration_s=240.2), REFERENCE)
    with pytest.raises(ParameterError, match="nothing to add"):
        begin(EXTEND, REFERENCE)


EDIT = replace(PARAMS, task="edit", retake_seed=3)


def contexts(task: TaskState) -> list[list[int]]:
    """The contexts that each forward of a whole request asks for."""
    asked = []
    while task.forwards_done < task.forwards:
        queries = task.queries()
        asked.append([query.context for query in queries])
        task = task.advance([torch.ones_like(query.latents) for query in queries])
    return asked


def test_an_edit_compares_source_and_target_and_then_samples_the_target() -> None:
    asked = contexts(begin(replace(EDIT, edit_n_min=0.25, edit_n_max=0.5, edit_n_avg=2), REFERENCE))
    both = [SOURCE, SOURCE_NOTHING, TARGET, TARGET_NOTHING]
    assert asked == [both] * 4 + [[TARGET, TARGET_NOTHING]] * 4
    assert contexts(begin(replace(EDIT, guidance_scale=1.0), REFERENCE)) == [[SOURCE, TARGET]] * 8


def test_an_edit_to_what_the_source_is_already_changes_nothing() -> None:
    task = begin(replace(EDIT, guidance_scale=1.0), REFERENCE)
    while task.forwards_done < task.forwards:
        task = task.advance([torch.ones_like(query.latents) for query in task.queries()])
    torch.testing.assert_close(task.latents, REFERENCE, rtol=0, atol=0)


@pytest.mark.parametrize("draws", [1, 3])
def test_an_edit_moves_by_the_difference_of_both_predictions_however_many_draws_it_averages(draws: int) -> None:
    """From noise level 1 down to 0 along a difference of 1 everywhere: by -1 in all."""
    task = begin(replace(EDIT, guidance_scale=1.0, edit_n_avg=draws), REFERENCE)
    while task.forwards_done < task.forwards:
        velocities = [torch.full_like(query.latents, float(query.context == TARGET)) for query in task.queries()]
        task = task.advance(velocities)
    torch.testing.assert_close(task.latents, REFERENCE - 1, rtol=0, atol=1e-5)


def test_an_edit_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(ParameterError, match="edit_n_max"):
        begin(replace(EDIT, edit_n_min=0.6, edit_n_max=0.5), REFERENCE)
