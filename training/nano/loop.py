"""What every trainer here shares: a loop that logs, saves, stops when it is told to, and goes on where it stopped.

A step depends only on its number, on the share of the plan that is done, and on the state before it: its random
numbers come from `step_generator`. So a run of so many steps that was interrupted ends with the same weights as one
that was not. In one of so many minutes the share is of time, in which the first steps compile, after each interruption.
"""

import argparse
import json
import math
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from acestep_engine.freed_memory import keep_freed_memory
from training.nano.team import Team

STATE_FILE, LOG_FILE, EXPORTED_FILE = "state.pt", "log.jsonl", "exported.json"
ALONE = Team()


@dataclass(frozen=True)
class Plan:
    """How long to train in all, over every run in the same folder, and how often to log, to judge and to save.

    The run ends after `steps`, or once the steps have taken `minutes`, whichever comes first.
    """

    steps: int = 10**9
    minutes: float = 60.0
    log_every_steps: int = 50
    judge_every_steps: int = 1000
    save_every_s: float = 180.0


def add_plan(parser: argparse.ArgumentParser) -> None:
    """The options of every trainer: how long, where, and how much a step."""
    parser.add_argument("--minutes", type=float, default=Plan.minutes, help="of training in all, over every run")
    parser.add_argument("--steps", type=int, default=Plan.steps, help="in all, if that is less")
    parser.add_argument("--device", help="cpu or cuda (a GPU if there is one)")
    parser.add_argument("--scale", type=int, default=1, help="times as much in every step: 8 for a large GPU (1)")


def plan_of(options: argparse.Namespace) -> Plan:
    return Plan(steps=options.steps, minutes=options.minutes)


class Trainer(Protocol):
    """What `train` drives. `progress` is the share of the plan that is done, 0 to 1."""

    def step(self, step: int, progress: float) -> Mapping[str, float]:
        """Change the weights once; answer the losses."""

    def judge(self) -> Mapping[str, float]:
        """Marks on held-out data."""

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on: tensors, numbers, strings, lists and dicts of them."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` answered."""

    def export(self, folder: Path) -> None:
        """Write what the engine loads."""


def train(trainer: Trainer, folder: Path, plan: Plan, team: Team = ALONE) -> int:
    """Train until the plan is done; the number of steps taken in all, over all runs.

    State, log and exported weights lie in `folder`, and an earlier run's state is gone on from. In a team all go on and
    stop with its first member, which alone writes. After SIGTERM or SIGINT they are written as well, and the process
    ends with the status of one that the signal ended. A plan that was done before changes nothing.

    Exits with a sentence, and saves nothing, once a loss is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    torch.set_flush_denormal(True)  # the first gradients are so small that a CPU would crawl
    state = (
        torch.load(folder / STATE_FILE, weights_only=True, map_location="cpu")
        if (folder / STATE_FILE).exists()
        else None
    )
    step, trained_s = 0, 0.0
    if state is not None:
        trainer.load_state_dict(state["trainer"])
        step, trained_s = int(state["step"]), float(state["trained_s"])
        if _progress(plan, step, trained_s) >= 1 and _exported_step(folder) == step:
            print(f"all {step} steps were taken before", flush=True)
            return step
        print(f"going on from step {step}, after {trained_s / 60:.1f} minutes", flush=True)
    losses = _Means()
    saved_at = time.monotonic()
    with _stop_on_signal() as stopping:
        while (progress := team.follow_first(1.0 if stopping else _progress(plan, step, trained_s))) < 1:
            began = time.monotonic()
            of_step = trainer.step(step, progress)
            if not all(map(math.isfinite, of_step.values())):
                sys.exit(f"step {step} diverged: {dict(of_step)}; {folder} keeps the state of an earlier one")
            losses.add(of_step)
            step += 1
            trained_s += time.monotonic() - began
            if team.rank > 0:
                continue
            if step % plan.log_every_steps == 0:
                _log(folder, step, trained_s, losses.take())
            if step % plan.judge_every_steps == 0:
                _log(folder, step, trained_s, _judge(trainer))
            if time.monotonic() - saved_at > plan.save_every_s:
                _save(folder, trainer, step, trained_s)
                saved_at = time.monotonic()
        if team.rank > 0:
            return step
        _save(folder, trainer, step, trained_s)
        with _uncompiled():
            trainer.export(folder)
        (folder / EXPORTED_FILE).write_text(json.dumps({"step": step}))
        _log(folder, step, trained_s, _judge(trainer))
    if stopping and _progress(plan, step, trained_s) < 1:
        sys.exit(128 + stopping[0])
    return step


def learning_rate(highest: float, step: int, progress: float, warmup_steps: int = 200) -> float:
    """Linear up over the first steps, then half a cosine over the plan, down to a fiftieth of the highest."""
    fall = 0.5 + 0.5 * float(np.cos(np.pi * min(progress, 1.0)))
    return highest * min(1.0, (step + 1) / warmup_steps) * (0.02 + 0.98 * fall)


class Optimizer(Protocol):
    """What has groups of parameters, each with its rate."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """For all parameters of the optimizer."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def step_generator(seed: int, step: int) -> np.random.Generator:
    """The random numbers of one step of a run."""
    return np.random.Generator(np.random.PCG64((seed, step)))


def torch_generator(rng: np.random.Generator) -> torch.Generator:
    """A generator for tensors, seeded from another one."""
    return torch.Generator().manual_seed(int(rng.integers(2**62)))


def save_atomically(state: object, file: Path) -> None:
    """Write with torch.save, so that `file` is always whole, the old one or the new one."""
    partial = file.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, file)


class _Means:
    """Means of the losses since they were last taken."""

    def __init__(self) -> None:
        self._values: defaultdict[str, list[float]] = defaultdict(list)
        self._began = time.monotonic()

    def add(self, losses: Mapping[str, float]) -> None:
        for name, value in losses.items():
            self._values[name].append(value)

    def take(self) -> dict[str, float]:
        steps = max((len(values) for values in self._values.values()), default=1)
        means = {name: float(np.mean(values)) for name, values in self._values.items()}
        means["ms_per_step"] = 1000 * (time.monotonic() - self._began) / steps
        self._values.clear()
        self._began = time.monotonic()
        return means


def _judge(trainer: Trainer) -> Mapping[str, float]:
    with _uncompiled():
        return trainer.judge()


def _uncompiled() -> AbstractContextManager[None]:
    """What happens seldom, in other shapes than the steps, is not worth compiling."""
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance


def _progress(plan: Plan, step: int, trained_s: float) -> float:
    return max(step / plan.steps, trained_s / (60 * plan.minutes))


def _exported_step(folder: Path) -> int | None:
    """How many steps the exported weights have been trained for; None if there are none."""
    file = folder / EXPORTED_FILE
    if not file.exists():
        return None
    step: int = json.loads(file.read_text())["step"]
    return step


def _save(folder: Path, trainer: Trainer, step: int, trained_s: float) -> None:
    state = {"step": step, "trained_s": trained_s, "trainer": trainer.state_dict()}
    save_atomically(state, folder / STATE_FILE)


def _log(folder: Path, step: int, trained_s: float, values: Mapping[str, float]) -> None:
    rounded = {name: float(f"{value:.5g}") for name, value in values.items()}
    print(
        f"step {step:7d} {trained_s / 60:7.1f} min  " + "  ".join(f"{k} {v:g}" for k, v in rounded.items()), flush=True
    )
    with (folder / LOG_FILE).open("a") as file:
        file.write(json.dumps({"step": step, "minutes": round(trained_s / 60, 2), **rounded}) + "\n")


@contextmanager
def _stop_on_signal() -> Iterator[list[int]]:
    """A list that is filled once SIGTERM or SIGINT comes. More change nothing: torchrun repeats those of a terminal."""
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda number, frame: received.append(number))
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
