"""The evaluation drives a real engine: here a tiny one, which makes noise and must be told so."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.evaluate_sounds import RATE_HZ, beat
from training.nano.evaluate.edits import reference_mark
from training.nano.evaluate.maker import Maker
from training.nano.evaluate.report import show_marks
from training.nano.evaluate.songs import params_of, seed_marks
from training.nano.evaluate.trials import Trial, held_out_trials

SECONDS = 2.0


@pytest.fixture(scope="module")
def maker(tiny_checkpoint: Path) -> Maker:
    return Maker.of(str(tiny_checkpoint))


@pytest.fixture(scope="module")
def trial() -> Trial:
    (found,) = held_out_trials(1, SECONDS)
    return found


def test_a_song_is_made_of_a_trials_prompt_and_is_as_long(maker: Maker, trial: Trial) -> None:
    params = params_of(trial)
    assert params.prompt == trial.prompt
    assert maker.heard(maker.make(params)).shape[1] == pytest.approx(SECONDS * RATE_HZ, abs=4096)


def test_what_went_through_the_codec_is_as_long_as_before(maker: Maker) -> None:
    audio = beat(100, 1.3)
    assert maker.through_codec(audio).shape == audio.shape


def test_the_same_seed_is_seen_to_repeat_and_another_to_differ(maker: Maker, trial: Trial) -> None:
    repeats, differs = seed_marks(maker, [trial], [maker.make(params_of(trial))])
    assert repeats.holds
    assert differs.reached != "0.00 (0.00)"


def test_a_song_that_is_no_repetition_is_told_apart(maker: Maker, trial: Trial) -> None:
    other = maker.make(replace(params_of(trial), seed=5))
    repeats, _ = seed_marks(maker, [trial], [other])
    assert not repeats.holds
    assert "NO" in show_marks([repeats])


def test_a_reference_is_followed_at_three_strengths(maker: Maker, trial: Trial) -> None:
    mark = reference_mark(maker, [trial], [beat(100, SECONDS)])
    assert len(mark.reached.split(", ")) == 3
