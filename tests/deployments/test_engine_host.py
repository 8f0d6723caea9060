"""The thread of a replica's engine, and adapters that come beside its songs."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from acestep_engine import engine
from acestep_engine.adapters import AdapterLoader
from acestep_engine.calibrate import Calibration
from acestep_engine.checkpoint import NANO_PATH
from acestep_engine.conditioning import Conditioning
from acestep_engine.engine import Engine
from acestep_engine.errors import AdapterChangedError
from acestep_engine.lora import read_adapter
from acestep_engine.model.config import read_transformer_config
from acestep_engine.model.low_rank import PlacedAdapter
from acestep_engine.params import Adapter, AdapterLimits, GenerationParams, ModelSpec
from acestep_engine.requests import Event, Finished, Inputs, Latents
from deployments.engine_host import Call, EngineHost
from deployments.failures import GpuMemoryError, LatentSpaceError, SharedStepError
from deployments.latent_space import latent_space_of
from tests.nano_lora import save_nano_lora

SPEC = ModelSpec("nano", str(NANO_PATH))
SONG = GenerationParams("", "", 1.0, seed=1, steps=2, guidance_scale=1.0)
TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def host() -> Iterator[EngineHost]:
    host = EngineHost("cpu", None, AdapterLimits(most=2), on_gpu_lost=lambda: None)
    host.load(SPEC).result(TIMEOUT_S)
    yield host
    host.close()


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Adapter]:
    root, config = tmp_path_factory.mktemp("loras"), read_transformer_config(NANO_PATH)
    paths = [save_nano_lora(root / str(seed), seed) for seed in range(4)]
    return [Adapter(path.name, read_adapter(path, config).digest, str(path)) for path in paths]


class Gate:
    """Lets adapters be loaded, or not yet."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.asked: list[str] = []
        load = AdapterLoader.load

        def load_later(loader: AdapterLoader, adapter: Adapter) -> PlacedAdapter:
            self.asked.append(adapter.name)
            assert self.open.wait(TIMEOUT_S)
            return load(loader, adapter)

        monkeypatch.setattr(AdapterLoader, "load", load_later)


def call(params: GenerationParams, adapter: Adapter | None = None) -> Call:
    draw = np.random.default_rng(3)
    text = draw.standard_normal((4, 64), dtype=np.float32)
    ids = np.array([1, 5, 9], dtype=np.int64)
    inputs = Inputs(Conditioning(text, None, ids, np.ones_like(ids)))
    params = replace(params, adapter=adapter)
    return Call(
        f"{id(params)}-{params.seed}", SPEC, params, inputs, 0, lambda progress: None, lambda heard: None, Future()
    )


def submit(host: EngineHost, params: GenerationParams, adapter: Adapter | None = None) -> "Future[Finished]":
    submitted = call(params, adapter)
    host.submit(submitted)
    return submitted.end


def latents(song: "Future[Finished]") -> Latents:
    return song.result(TIMEOUT_S).latents


def same(one: Latents, other: Latents) -> bool:
    return float(np.linalg.norm(one - other)) <= 1e-4 * float(np.linalg.norm(one))


def test_a_model_that_comes_back_is_not_measured_again(host: EngineHost, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Calibration:
        raise AssertionError("measured again")

    other = replace(SPEC, name="other")
    monkeypatch.setattr(engine, "measure", lambda *_: Calibration(1000, 20.0))
    host.load(other).result(TIMEOUT_S)
    monkeypatch.setattr(engine, "measure", refuse)
    host.load(SPEC).result(TIMEOUT_S)
    host.load(other).result(TIMEOUT_S)
    host.load(SPEC).result(TIMEOUT_S)


def test_memory_is_given_back_once_after_songs_when_the_engine_is_idle(
    host: EngineHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[float] = []
    monkeypatch.setattr("deployments.engine_host.give_back_freed_memory", lambda: given_back.append(time.monotonic()))
    monkeypatch.setattr("deployments.engine_host.IDLE_S", 0.3)
    for _ in range(2):
        submit(host, SONG).result(TIMEOUT_S)
    ended_at = time.monotonic()
    assert given_back == []
    time.sleep(1.2)
    assert len(given_back) == 1
    assert given_back[0] - ended_at > 0.2


def test_songs_go_on_while_an_adapter_is_loaded(
    host: EngineHost, adapters: list[Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    adapted = submit(host, SONG, adapters[0])
    for seed in range(3):  # songs that came later, from their first step to their last
        latents(submit(host, replace(SONG, seed=seed)))
    assert not adapted.done()
    gate.open.set()
    assert not same(latents(adapted), latents(submit(host, SONG)))
    assert same(latents(adapted), latents(submit(host, SONG, adapters[0])))
    assert gate.asked == ["0"]  # once


def test_more_adapters_than_there_is_room_for_take_turns(host: EngineHost, adapters: list[Adapter]) -> None:
    wanted = [adapters[index] for index in (1, 2, 3, 0, 2, 1, 3, 0)]
    together = [submit(host, replace(SONG, steps=8), adapter) for adapter in wanted]
    alone = {adapter.name: latents(submit(host, replace(SONG, steps=8), adapter)) for adapter in adapters}
    for adapter, song in zip(wanted, together, strict=True):
        assert [name for name, other in alone.items() if same(latents(song), other)] == [adapter.name]


def test_who_waits_for_room_is_not_forgotten_when_all_songs_end_in_one_step(
    host: EngineHost, adapters: list[Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here because the step fails; two lanes may also finish two songs at once."""
    step, running = Engine.step, threading.Event()

    def fail_when_asked(engine: Engine) -> list[Event]:
        if running.is_set():
            running.clear()
            raise RuntimeError("for all of them")
        return step(engine)

    monkeypatch.setattr(Engine, "step", fail_when_asked)
    long = replace(SONG, steps=1_000)
    songs = [submit(host, long, adapter) for adapter in adapters[:2]]
    while not all(song.running() for song in songs):
        time.sleep(0.01)
    waiting = submit(host, SONG, adapters[2])
    time.sleep(0.1)  # it is seen to have no room
    running.set()
    for song in songs:
        with pytest.raises(SharedStepError):
            song.result(TIMEOUT_S)
    latents(waiting)


def test_an_adapter_that_cannot_be_had_fails_its_songs_only(host: EngineHost, adapters: list[Adapter]) -> None:
    changed = replace(adapters[1], name="changed", digest="0" * 64)
    songs = [submit(host, SONG, changed), submit(host, SONG, adapters[1]), submit(host, SONG, changed)]
    latents(songs[1])
    for song in (songs[0], songs[2]):
        with pytest.raises(AdapterChangedError, match="'changed'"):
            song.result(TIMEOUT_S)


def test_an_adapter_that_cannot_be_had_is_loaded_once_for_songs_at_all_weights(
    host: EngineHost, adapters: list[Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    changed = replace(adapters[1], name="changed", digest="0" * 64)
    songs = [submit(host, replace(SONG, seed=n), replace(changed, weight=1.0 + n / 10)) for n in range(4)]
    latents(submit(host, SONG))  # all others wait by now
    gate.open.set()
    for song in songs:
        with pytest.raises(AdapterChangedError, match="'changed'"):
            song.result(TIMEOUT_S)
    assert gate.asked == ["changed"]
    with pytest.raises(AdapterChangedError):
        submit(host, SONG, changed).result(TIMEOUT_S)
    assert gate.asked == ["changed", "changed"]  # a later song tries again


def test_an_adapter_that_does_not_fit_is_loaded_twice_for_songs_at_all_weights(
    host: EngineHost, adapters: list[Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, opened = [], threading.Event()

    def load_nothing(loader: AdapterLoader, adapter: Adapter) -> PlacedAdapter:
        asked.append(adapter.name)
        assert opened.wait(TIMEOUT_S)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(AdapterLoader, "load", load_nothing)
    large = replace(adapters[1], name="large", digest="3" * 64)
    songs = [submit(host, replace(SONG, seed=n), replace(large, weight=1.0 + n / 10)) for n in range(4)]
    latents(submit(host, SONG))
    opened.set()
    for song in songs:
        with pytest.raises(GpuMemoryError, match="the adapter does not fit"):
            song.result(TIMEOUT_S)
    assert asked == ["large"] * 2  # the second time without what no song used


def test_a_call_that_waits_for_its_adapter_can_be_aborted(
    host: EngineHost, adapters: list[Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    first = call(SONG, replace(adapters[3], digest="1" * 64))
    host.submit(first)
    latents(submit(host, SONG))
    host.abort(first)
    gate.open.set()
    latents(submit(host, SONG, adapters[0]))
    assert first.end.cancelled()


def test_another_model_waits_for_those_who_wait_for_an_adapter(
    host: EngineHost, adapters: list[Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    unseen = submit(host, SONG, replace(adapters[0], digest="2" * 64))
    latents(submit(host, SONG))
    loaded = host.load(SPEC)
    latents_before = submit(host, SONG)  # behind the load
    assert not loaded.done()
    gate.open.set()
    with pytest.raises(AdapterChangedError):
        unseen.result(TIMEOUT_S)
    loaded.result(TIMEOUT_S)
    latents(latents_before)


def test_a_song_never_begins_from_latents_of_another_model(host: EngineHost) -> None:
    space = latent_space_of(NANO_PATH)
    first = call(SONG)
    host.submit(first)
    made = latents(first.end)
    assert first.made_in == host.describe("r1", ()).latent_space == space
    repaint = replace(SONG, task="repaint", repaint_start_s=0.2, repaint_end_s=0.6, duration_s=made.shape[-1] / 10.77)
    songs = [replace(call(repaint), latent_space=name) for name in (space, "another", "")]
    for one in songs:
        one.inputs = replace(one.inputs, source=made)
        host.submit(one)
    latents(songs[0].end)
    latents(songs[2].end)
    with pytest.raises(LatentSpaceError, match="another model"):
        songs[1].end.result(TIMEOUT_S)


def test_what_is_decoded_is_told_before_the_end(host: EngineHost) -> None:
    told: list[int | None] = []
    heard = replace(call(replace(SONG, duration_s=12.0)), on_audio=lambda heard: told.append(heard.samples.shape[1]))
    heard.end.add_done_callback(lambda end: told.append(None))
    host.submit(heard)
    latents(heard.end)
    assert told[-1] is None
    assert len(told) > 2
    assert sum(filter(None, told)) / 48_000 == pytest.approx(12.0, abs=0.1)


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [(torch.AcceleratorError("an illegal address"), True), (RuntimeError("a mistake of ours"), False)],
)
def test_a_replica_whose_gpu_is_lost_ends(monkeypatch: pytest.MonkeyPatch, error: RuntimeError, is_lost: bool) -> None:
    ended = threading.Event()
    host = EngineHost("cpu", None, AdapterLimits(most=2), on_gpu_lost=ended.set)
    monkeypatch.setattr(engine, "measure", lambda *_: Calibration(1000, 20.0))
    monkeypatch.setattr(Engine, "step", lambda self: _raise(error))
    try:
        with pytest.raises(type(error)):
            latents(submit(host, SONG))
        assert ended.is_set() is is_lost
    finally:
        host.close()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUFFT_ALLOC_FAILED")])
def test_a_model_that_does_not_fit_the_memory_says_what_helps_and_the_next_one_is_loaded(
    monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    trouble = [error]
    host = EngineHost("cpu", None, AdapterLimits(most=2), on_gpu_lost=lambda: None)

    def measure(*_: object) -> Calibration:
        return _raise(trouble.pop()) if trouble else Calibration(1000, 20.0)

    monkeypatch.setattr(engine, "measure", measure)
    try:
        with pytest.raises(GpuMemoryError, match="cpu_offload"):
            host.load(SPEC).result(TIMEOUT_S)
        host.load(SPEC).result(TIMEOUT_S)
    finally:
        host.close()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_replica_whose_gpu_cannot_be_used_says_why(device: str | None, caplog: pytest.LogCaptureFixture) -> None:
    """A driver that is older than this torch needs would not be noticed otherwise, but for songs that take an hour."""
    EngineHost(device, None, AdapterLimits(most=2), on_gpu_lost=lambda: None).close()
    assert ("torch cannot use" in caplog.text) is (device is None)
    assert ("driver" in caplog.text) is (device is None)


def _raise(error: Exception) -> Any:
    raise error
