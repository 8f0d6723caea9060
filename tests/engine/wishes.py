"""Requests of every kind, each comparable with the song that it makes alone, and an engine's events taken apart."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from acestep_engine.audio import SourceAudio
from acestep_engine.conditioning import Conditioning
from acestep_engine.engine import Engine
from acestep_engine.model.packing import Packing
from acestep_engine.params import GenerationParams, Progress
from acestep_engine.requests import Event, Failed, Inputs, Moved, Song
from tests.engine.small import conditioning, small_engine, small_transformer
from tests.parity import relative_error

GENERATION = 2e-3  # what is promised
EXACT = 2e-5  # what these small models keep to


@dataclass(frozen=True)
class Wish:
    """A request, by what can be compared and kept."""

    params: GenerationParams
    prompt: int = 0
    lyric_tokens: int = 7
    source_seed: int | None = None
    priority: int = 0

    @property
    def conditioning(self) -> Conditioning:
        return conditioning(self.prompt, lyric_tokens=self.lyric_tokens)

    @property
    def inputs(self) -> Inputs:
        target = conditioning(self.prompt + 1, text_tokens=4, lyric_tokens=2) if self.params.task == "edit" else None
        return Inputs(self.conditioning, target, self.source)

    @property
    def source(self) -> SourceAudio | None:
        if self.source_seed is None:
            return None
        noise = np.random.default_rng(self.source_seed).standard_normal((2, 20_000), dtype=np.float32)
        return SourceAudio(0.1 * noise, 44_100)

    def add_to(self, engine: Engine, request_id: str) -> None:
        engine.add(request_id, self.params, self.inputs, self.priority)


@cache
def alone(wish: Wish) -> Song:
    return small_engine().generate(wish.params, wish.inputs)


PARAMS = GenerationParams("", "", 0.5, seed=1, steps=4)
DOUBLE = {"guidance_scale_text": 5.0, "guidance_scale_lyric": 1.5}

KINDS = {
    "usual": Wish(PARAMS),
    "one frame": Wish(replace(PARAMS, duration_s=0.1, seed=2), prompt=1),
    "heun": Wish(replace(PARAMS, scheduler="heun", cfg_type="cfg", seed=3, guidance_interval=1.0), prompt=2),
    "pingpong": Wish(replace(PARAMS, scheduler="pingpong", cfg_type="cfg_star", duration_s=1.0, seed=4), prompt=3),
    "double guidance": Wish(replace(PARAMS, **DOUBLE, steps=5, duration_s=0.9, seed=5), prompt=4, lyric_tokens=20),
    "erg": Wish(replace(PARAMS, use_erg_lyric=True, guidance_interval=0.8, seed=6), prompt=5),
    "no erg": Wish(replace(PARAMS, use_erg_diffusion=False, use_erg_tag=False, scheduler="pingpong", seed=7)),
    "unguided": Wish(replace(PARAMS, guidance_scale=1.0, duration_s=1.5, steps=2, seed=8), prompt=6),
    "decaying": Wish(replace(PARAMS, guidance_interval=1.0, guidance_interval_decay=0.7, steps=5, seed=9), prompt=7),
    "picked steps": Wish(replace(PARAMS, oss_steps=(1, 3, 4, 7), seed=10), prompt=8),
    "from audio": Wish(replace(PARAMS, task="audio2audio", ref_audio_strength=0.4, seed=11), source_seed=1),
    "retake": Wish(replace(PARAMS, task="retake", retake_seed=1, retake_variance=0.3, seed=12)),
    "repaint": Wish(
        replace(PARAMS, task="repaint", repaint_start_s=0.1, repaint_end_s=0.3, retake_seed=2, seed=13), source_seed=2
    ),
    "extended": Wish(
        replace(PARAMS, task="extend", left_extend_s=0.2, right_extend_s=0.9, duration_s=1.6, retake_variance=1.0),
        prompt=9,
        source_seed=3,
    ),
    "edited": Wish(
        replace(PARAMS, task="edit", edit_n_min=0.25, edit_n_max=0.75, edit_n_avg=2, retake_seed=4),
        prompt=10,
        source_seed=4,
    ),
}


def drain(engine: Engine, most: int = 2000) -> list[Event]:
    """All that happens until nobody is left."""
    events: list[Event] = []
    for _ in range(most):
        if not engine.busy:
            return events
        events += engine.step()
    raise AssertionError(f"{most} steps did not finish all requests")


def steps(engine: Engine, count: int) -> list[Event]:
    return [event for _ in range(count) for event in engine.step()]


def failures(events: Iterable[Event]) -> dict[str, Exception]:
    return {event.request_id: event.error for event in events if isinstance(event, Failed)}


def progress(events: Iterable[Event], request_id: str) -> list[Progress]:
    return [event.progress for event in events if isinstance(event, Moved) and event.request_id == request_id]


def run(engine: Engine, wishes: Mapping[str, Wish]) -> list[Event]:
    """All of them together from the start, to the end."""
    for request_id, wish in wishes.items():
        wish.add_to(engine, request_id)
    return drain(engine)


def assert_same(found: Song, expected: Song, tolerance: float = EXACT) -> None:
    assert relative_error(torch.tensor(found.latents), torch.tensor(expected.latents)) <= tolerance
    assert relative_error(torch.tensor(found.audio), torch.tensor(expected.audio)) <= GENERATION


def assert_as_alone(found: Mapping[str, Song], wishes: Mapping[str, Wish]) -> None:
    assert found.keys() == wishes.keys()
    for request_id, wish in wishes.items():
        assert_same(found[request_id], alone(wish))


@contextmanager
def before_forwards(look: Callable[[Packing], None]) -> Iterator[None]:
    """Look at, or refuse, each forward of the transformer meanwhile."""

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        look(args[2])

    handle = small_transformer().register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def runs_of(module: nn.Module) -> Iterator[list[nn.Module]]:
    """As many entries as the module ran meanwhile."""
    calls: list[nn.Module] = []
    handle = module.register_forward_hook(lambda module, args, output: calls.append(module))
    try:
        yield calls
    finally:
        handle.remove()
