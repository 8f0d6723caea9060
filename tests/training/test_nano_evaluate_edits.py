"""The measures of edits tell a model that keeps what it should from one that does not."""

from collections.abc import Callable

import numpy as np
import pytest

from acestep_engine.audio import SourceAudio
from acestep_engine.params import GenerationParams, Timings, latent_frames
from acestep_engine.requests import Latents, Song
from tests.training.evaluate_sounds import RATE_HZ, Audio, beat, noise, tones
from training.nano.evaluate.edits import ADDED_S, REPAINTED_S, extend_marks, reference_mark, repaint_marks
from training.nano.evaluate.maker import Maker
from training.nano.evaluate.trials import Trial, held_out_trials

Edit = Callable[[GenerationParams, SourceAudio | Latents | None], Audio]
LATENT_SAMPLES = 4096


class Imagined(Maker):
    """Answers what an edit makes, at the rate of the evaluation, without a model."""

    def __init__(self, edit: Edit) -> None:
        self._edit = edit

    def make(self, params: GenerationParams, source: SourceAudio | Latents | None = None) -> Song:
        return song(self._edit(params, source))

    def through_codec(self, audio: Audio) -> Audio:
        return audio

    def heard(self, song: Song) -> Audio:
        return song.audio


def song(audio: Audio) -> Song:
    return Song(np.zeros((8, 16, 1), np.float32), audio, Timings(0.0, 0.0, 0.0))


@pytest.fixture(scope="module")
def trial() -> Trial:
    return next(one for one in held_out_trials(8) if one.piece.drums)


@pytest.mark.parametrize(("follows", "holds"), [(True, True), (False, False)])
def test_rhythm_has_to_follow_the_reference_more_the_stronger(trial: Trial, follows: bool, holds: bool) -> None:
    reference = beat(100, 10.0)

    def edit(params: GenerationParams, source: SourceAudio | Latents | None) -> Audio:
        strength = params.ref_audio_strength
        return (strength if follows else 1 - strength) * reference + noise(10.0, 0.02)

    assert reference_mark(Imagined(edit), [trial], [reference]).holds is holds


def repainted(before: Audio, changed_s: tuple[float, float], step: float = 0.0) -> Audio:
    """The song with noise in a range, and a step where that begins."""
    start, stop = (latent_frames(second) * LATENT_SAMPLES for second in changed_s)
    made = before.copy()
    made[:, start:stop] = noise((stop - start) / RATE_HZ, 0.02)[:, : stop - start]
    fade = np.linspace(0, 1, 2000, dtype=np.float32)
    for edge, inwards in ((start, slice(start, start + 2000)), (stop, slice(stop - 2000, stop))):
        weight = fade if edge == start else fade[::-1]
        made[:, inwards] = weight * made[:, inwards] + (1 - weight) * before[:, inwards]
    made[:, start : start + 200] += step
    return made


@pytest.mark.parametrize(
    ("changed_s", "step", "holds"),
    [
        (REPAINTED_S, 0.0, [True, True]),
        ((3.0, 8.0), 0.0, [False, True]),  # more than was asked for
        ((5.9, 6.0), 0.0, [False, True]),  # next to nothing
        (REPAINTED_S, 1.0, [True, False]),  # a click
    ],
)
def test_a_repaint_changes_its_range_only_and_does_not_click(
    trial: Trial, changed_s: tuple[float, float], step: float, holds: list[bool]
) -> None:
    before = tones((220.0, 330.0), 10.0)
    maker = Imagined(lambda params, source: repainted(before, changed_s, step))
    assert [mark.holds for mark in repaint_marks(maker, [trial], [song(before)])] == holds


def music(bpm: float, root_hz: float, seconds: float) -> Audio:
    """A beat and a major chord."""
    return beat(bpm, seconds)[:, : round(seconds * RATE_HZ)] + tones((root_hz, 1.26 * root_hz, 1.5 * root_hz), seconds)


@pytest.mark.parametrize(
    ("tempo", "transposed", "step", "holds"),
    [
        (1.0, 1.0, 0.0, [True, True, True]),
        (1.25, 1.0, 0.0, [False, True, True]),
        (1.0, 2 ** (3 / 12), 0.0, [True, False, True]),
        (1.0, 1.0, 3.0, [True, True, False]),
    ],
)
def test_an_extension_has_to_go_on_as_its_source_does(
    trial: Trial, tempo: float, transposed: float, step: float, holds: list[bool]
) -> None:
    bpm, join = trial.piece.bpm, latent_frames(10.0) * LATENT_SAMPLES
    source = music(bpm, 220.0, join / RATE_HZ)
    whole = music(bpm, 220.0, join / RATE_HZ + ADDED_S)
    added = music(tempo * bpm, transposed * 220.0, ADDED_S)
    made = np.concatenate([source, added], axis=1)
    made[:, join : join + 200] += step
    smooth = np.linspace(0, 1, 400, dtype=np.float32)
    if not step:  # the chord breaks off at the join: let it fade
        made[:, join - 400 : join] *= smooth[::-1]
        made[:, join : join + 400] *= smooth
    maker = Imagined(lambda params, source: made)
    assert [mark.holds for mark in extend_marks(maker, [trial], [source], [whole])] == holds
