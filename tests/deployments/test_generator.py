"""A Generator with the nano model, without Serve around it."""

import asyncio
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import pytest
from ray.serve.exceptions import RequestCancelledError

from acestep_engine.audio import AudioLimits, SourceAudio
from acestep_engine.checkpoint import NANO_PATH
from acestep_engine.conditioning import Conditioning
from acestep_engine.engine import Engine
from acestep_engine.params import AdapterLimits, GenerationParams, ModelSpec, Progress
from deployments.engine_host import EngineHost
from deployments.generator import FILE_THREADS, Generator
from deployments.lease import hangs_after_s
from deployments.messages import Heartbeat, Rendered, RenderJob, ReplicaState
from tests.deployments.house import House, Message, sing

SPEC = ModelSpec("nano", str(NANO_PATH))
SONG = GenerationParams("", "", 1.0, seed=1, steps=2, guidance_scale=1.0)
HANGS_AFTER_S = 5.0
SOURCE = SourceAudio(np.full((2, 48_000), 0.1, np.float32), 48_000)
LIMITS = AudioLimits(max_duration_s=600.0, max_channels=8, min_rate_hz=8_000, max_rate_hz=192_000)


class ReportsOnly:
    """As the JobManager's handle."""

    def __init__(self) -> None:
        self.report = self
        self.answers: Callable[..., Awaitable[tuple[str, ...]]] | None = None

    async def remote(self, *report: Any) -> tuple[str, ...]:
        return () if self.answers is None else await self.answers(*report)


class Replica(Generator):
    def __del__(self) -> None:
        """The host is everybody's."""


@pytest.fixture
def job_manager() -> ReportsOnly:
    return ReportsOnly()


@pytest.fixture(scope="module")
def host() -> Iterator[EngineHost]:
    """One for all tests: a CPU that others use takes a minute to load it."""
    host = EngineHost("cpu", None, AdapterLimits(most=2), on_gpu_lost=lambda: None)
    host.load(SPEC).result()
    yield host
    host.close()


@pytest.fixture
async def generator(
    monkeypatch: pytest.MonkeyPatch, job_manager: ReportsOnly, host: EngineHost
) -> AsyncIterator[Generator]:
    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="r1"), app_name="ace-step")
    runtime = SimpleNamespace(get_accelerator_ids=dict)
    monkeypatch.setattr("deployments.generator.serve.get_replica_context", lambda: context)
    monkeypatch.setattr("deployments.generator.serve.get_deployment_handle", lambda *names: job_manager)
    monkeypatch.setattr("deployments.generator._make_host", lambda *options: host)
    monkeypatch.setattr("deployments.generator.ray.get_runtime_context", lambda: runtime)
    generator = Replica.__new__(Replica)  # as Serve does: the constructor is a coroutine
    starting: Any = Generator.__init__(generator, SPEC, False, LIMITS, None, AdapterLimits(most=2), HANGS_AFTER_S)
    await starting
    yield generator
    generator._reporting.cancel()


def conditioning() -> Conditioning:
    text = np.random.default_rng(3).standard_normal((4, 64), dtype=np.float32)
    ids = np.array([1, 5, 9], dtype=np.int64)
    return Conditioning(text, None, ids, np.ones_like(ids))


def job(params: GenerationParams = SONG) -> RenderJob:
    return RenderJob("a" * 32, params, "wav", {})


async def test_a_call_tells_that_it_lives_from_its_first_moment_whatever_it_waits_for(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its source waits for a thread, and then the end of its file does."""
    monkeypatch.setattr("deployments.generator.HEARTBEAT_S", 0.05)

    def read(*_: object) -> SourceAudio:
        for _ in range(FILE_THREADS):
            generator._files.submit(time.sleep, 1.5)  # beyond the song's denoising
        return SOURCE

    generator._sources.submit(time.sleep, 0.5)
    monkeypatch.setattr("deployments.generator.read_audio", read)
    told: list[object] = []
    async for message in generator.generate(SPEC, job(), np.zeros(4, np.uint8), conditioning()):
        told.append(message)
    assert isinstance(told[0], Progress)
    assert isinstance(told[-1], Rendered)
    first_step = next(place for place, one in enumerate(told[1:], 1) if isinstance(one, Progress))
    assert sum(isinstance(one, Heartbeat) for one in told[:first_step]) > 5
    assert sum(isinstance(one, Heartbeat) for one in told[first_step:]) > 5


async def test_a_source_is_let_go_of_once_it_is_encoded(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[weakref.ref[SourceAudio]] = []

    def read_once(*_: object) -> SourceAudio:
        source = replace(SOURCE)
        read.append(weakref.ref(source))
        return source

    monkeypatch.setattr("deployments.generator.read_audio", read_once)
    params = replace(SONG, task="audio2audio", ref_audio_strength=0.1, steps=20)
    held_while_denoising: list[bool] = []
    async for message in generator.generate(SPEC, job(params), np.zeros(4, np.uint8), conditioning()):
        if isinstance(message, Progress) and message.stage != "encoding" and message.step > 0:
            held_while_denoising.append(read[0]() is not None)
            assert generator._source_room.nbytes == 0
    assert held_while_denoising
    assert not any(held_while_denoising)


async def test_a_call_that_is_cancelled_before_it_reached_the_engine_never_reaches_it(generator: Generator) -> None:
    generator._sources.submit(time.sleep, 0.3)
    submitted: list[object] = []
    submit = generator._host.submit
    generator._host.submit = lambda call: (submitted.append(call), submit(call))[1]  # type: ignore[method-assign]

    async def listen() -> None:
        async for _ in generator.generate(SPEC, job(), np.zeros(4, np.uint8), conditioning()):
            pass

    listening = asyncio.create_task(listen())
    await asyncio.sleep(0.05)
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    await asyncio.sleep(0.5)
    assert submitted == []


async def test_a_replica_whose_engine_hangs_in_a_step_ends_and_one_that_waits_stays(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, released = threading.Event(), threading.Event()
    ends: list[str] = []
    monkeypatch.setattr("deployments.generator.end_hanging_replica", ends.append)
    forward = Engine._forward

    def hang(engine: Engine, requests: Any) -> Any:
        hangs.set()
        released.wait()
        return forward(engine, requests)

    await generator.check_health()
    monkeypatch.setattr(Engine, "_forward", hang)

    async def listen() -> None:
        async for _ in generator.generate(SPEC, job(), None, conditioning()):
            pass

    listening = asyncio.create_task(listen())
    await asyncio.to_thread(hangs.wait)
    await generator.check_health()
    assert ends == []
    generator._hangs_after_s = 0.2
    await asyncio.sleep(0.3)
    await generator.check_health()
    assert len(ends) == 1
    released.set()
    await listening
    await asyncio.sleep(0.5)
    await generator.check_health()
    assert len(ends) == 1


def test_a_hanging_engine_is_noticed_before_its_songs_time_out_and_a_slow_one_is_left_alone() -> None:
    assert [hangs_after_s(stall_s) for stall_s in (600.0, 60.0, 20.0)] == [570.0, 30.0, 10.0]


class LossyResponse:
    """As Serve's response of a call, whose cancel never arrives."""

    def __init__(self, messages: AsyncIterator[Any]) -> None:
        self._messages = messages
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._pumping = asyncio.create_task(self._pump())

    async def _pump(self) -> None:
        async for message in self._messages:
            self._queue.put_nowait(message)
        self._queue.put_nowait(StopAsyncIteration())

    def cancel(self) -> None:
        self._queue.put_nowait(RequestCancelledError())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        message = await self._queue.get()
        if isinstance(message, Exception):
            raise message
        return message


class LossyHandle:
    """As the handle of a real Generator."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator

    def options(self, **options: object) -> Self:
        return self

    def remote(self, spec: ModelSpec, job: RenderJob, source: Any, *encodings: object) -> LossyResponse:
        return LossyResponse(self._generator.generate(spec, job, source, conditioning()))


async def test_what_a_replica_runs_and_nobody_wants_is_aborted_although_every_cancel_is_lost(
    generator: Generator, job_manager: ReportsOnly, tmp_path: Path
) -> None:
    house = House(tmp_path)
    house.generator = LossyHandle(generator)  # type: ignore[assignment]
    await house.open(songs_per_size=8, queue_size=50)
    long = replace(SONG, steps=200, duration_s=30.0)
    wanted = await house.submit(songs=(replace(SONG, duration_s=1.0, steps=30),))

    async def submit_and_cancel(delay_s: float) -> None:
        request_id = await house.submit(songs=(long,))
        await asyncio.sleep(delay_s)
        await house.manager.cancel(request_id)

    await asyncio.gather(*(submit_and_cancel(number / 20) for number in range(8)))
    assert len(generator._calls) > 1
    job_manager.answers = house.manager.report
    await generator._report()

    async with asyncio.timeout(60):
        while generator._calls or generator._host._running:  # noqa: ASYNC110  in another thread
            await asyncio.sleep(0.05)
    assert (await house.end_of(wanted)).outcome == "completed"
    await house.close()


async def test_a_call_that_ends_without_its_song_is_made_again(house: House) -> None:
    async def end_early_once(job: RenderJob) -> AsyncIterator[Message]:
        yield Progress("encoding")
        if len(house.generator.started) > 1:
            async for message in sing(job):
                yield message

    house.generator.script = end_early_once
    view = await house.end_of(await house.submit())
    assert (view.outcome, len(house.generator.started)) == ("completed", 2)


async def test_a_deposed_job_manager_calls_no_song_unwanted(house: House) -> None:
    assert await house.manager.report(ReplicaState("r1", "nano", "cpu"), ("a", "b")) == ("a", "b")
    house.manager._store.depose()
    assert await house.manager.report(ReplicaState("r1", "nano", "cpu"), ("a", "b")) == ()
