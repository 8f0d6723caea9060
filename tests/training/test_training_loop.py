"""A run of training is logged, stops when it is told to, and goes on where it stopped."""

import json
import math
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.codec import SMALL_DCAE
from training.nano.autoencoder import AutoencoderTrainer, Settings
from training.nano.codec_data import held_out_recordings, training_recordings
from training.nano.loop import Plan, learning_rate, train

SETTINGS = Settings(batches=((1, 16), (1, 32)), judged=(1, 32))


class InterruptedTrainer(AutoencoderTrainer):
    """A trainer whose process is asked to end during its third step."""

    def step(self, step: int, progress: float) -> Mapping[str, float]:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().step(step, progress)


class DivergingTrainer(AutoencoderTrainer):
    """A trainer whose third step is no number."""

    def step(self, step: int, progress: float) -> Mapping[str, float]:
        return dict(super().step(step, progress)) | ({"gradient": math.nan} if step == 2 else {})


class ExportCounter(AutoencoderTrainer):
    exports = 0

    def export(self, folder: Path) -> None:
        self.exports += 1
        super().export(folder)


def trainer(recorded: Path, kind: type[AutoencoderTrainer] = AutoencoderTrainer) -> AutoencoderTrainer:
    return kind(SMALL_DCAE, SETTINGS, training_recordings(recorded), held_out_recordings(recorded))


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_an_interrupted_run_ends_with_the_weights_of_one_that_was_not(recorded: Path, tmp_path: Path) -> None:
    plan = Plan(steps=6, minutes=1e6)
    whole, interrupted, resumed = (
        trainer(recorded, kind) for kind in (AutoencoderTrainer, InterruptedTrainer, AutoencoderTrainer)
    )

    assert train(whole, tmp_path / "whole", plan) == 6
    with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)):
        train(interrupted, tmp_path / "parts", plan)
    assert logged(tmp_path / "parts")[-1]["step"] == 3
    assert train(resumed, tmp_path / "parts", plan) == 6

    for expected, found in zip(whole.dcae.parameters(), resumed.dcae.parameters(), strict=True):
        assert torch.equal(expected, found)


def test_after_a_run_signals_do_what_they_did_before(recorded: Path, tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    with pytest.raises(SystemExit):
        train(trainer(recorded, InterruptedTrainer), tmp_path, Plan(steps=4))

    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_in_the_last_step_leaves_nothing_to_go_on_with(recorded: Path, tmp_path: Path) -> None:
    assert train(trainer(recorded, InterruptedTrainer), tmp_path, Plan(steps=3)) == 3


def test_a_plan_that_is_done_changes_nothing_and_a_longer_one_goes_on(recorded: Path, tmp_path: Path) -> None:
    train(trainer(recorded), tmp_path, Plan(steps=2))
    lines = logged(tmp_path)
    again = ExportCounter(SMALL_DCAE, SETTINGS, training_recordings(recorded), held_out_recordings(recorded))
    assert train(again, tmp_path, Plan(steps=2)) == 2
    assert (again.exports, logged(tmp_path)) == (0, lines)
    assert train(again, tmp_path, Plan(steps=3)) == 3
    assert again.exports == 1


def test_weights_that_were_not_written_are_written_by_the_next_run(recorded: Path, tmp_path: Path) -> None:
    train(trainer(recorded), tmp_path, Plan(steps=2))
    (tmp_path / "exported.json").unlink()  # as if it had been killed right before
    again = ExportCounter(SMALL_DCAE, SETTINGS, training_recordings(recorded), held_out_recordings(recorded))
    assert train(again, tmp_path, Plan(steps=2)) == 2
    assert again.exports == 1


def test_a_run_that_diverges_ends_and_saves_nothing_of_it(recorded: Path, tmp_path: Path) -> None:
    train(trainer(recorded), tmp_path, Plan(steps=2))
    state = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(SystemExit, match="step 2 diverged"):
        train(trainer(recorded, DivergingTrainer), tmp_path, Plan(steps=6))
    assert (tmp_path / "state.pt").read_bytes() == state
    assert train(trainer(recorded), tmp_path, Plan(steps=3)) == 3


def test_losses_and_marks_are_logged_as_lines_of_json(recorded: Path, tmp_path: Path) -> None:
    train(trainer(recorded), tmp_path, Plan(steps=4, log_every_steps=2, judge_every_steps=4))

    lines = logged(tmp_path)
    assert [line["step"] for line in lines] == [2, 4, 4, 4]
    assert all(line["loss"] > 0 for line in lines[:2])
    assert all(line["held_out_nepers"] > 0 for line in lines[2:])


def test_a_run_ends_once_it_has_taken_its_minutes(recorded: Path, tmp_path: Path) -> None:
    assert train(trainer(recorded), tmp_path, Plan(minutes=1e-9)) == 1
    assert train(trainer(recorded), tmp_path, Plan(minutes=1e-9)) == 1  # over all runs


def test_the_learning_rate_rises_and_falls(recorded: Path) -> None:
    assert learning_rate(1.0, 0, 0.0) == pytest.approx(1 / 200)
    assert learning_rate(1.0, 1000, 0.0) == pytest.approx(1.0)
    assert learning_rate(1.0, 1000, 0.5) == pytest.approx(0.51)
    assert learning_rate(1.0, 1000, 1.0) == pytest.approx(0.02)
