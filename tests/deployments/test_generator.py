"""A Generator with the nano model, without Serve around it."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from acestep_engine.audio import AudioLimits
from acestep_engine.checkpoint import NANO_PATH
from acestep_engine.conditioning import Conditioning
from acestep_engine.params import AdapterLimits, GenerationParams, ModelSpec, Progress
from deployments.engine_host import EngineHost
from deployments.generator import FILE_THREADS, Generator
from deployments.messages import Heartbeat, Rendered, RenderJob

SPEC = ModelSpec("nano", str(NANO_PATH))
SONG = GenerationParams("", "", 1.0, seed=1, steps=2, guidance_scale=1.0)
LIMITS = AudioLimits(max_duration_s=600.0, max_channels=8, min_rate_hz=8_000, max_rate_hz=192_000)


class ReportsOnly:
    """As the JobManager's handle."""

    def __init__(self) -> None:
        self.report = self
        self.reports: list[tuple[Any, ...]] = []

    async def remote(self, *report: Any) -> tuple[str, ...]:
        self.reports.append(report)
        return ()


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
    starting: Any = Generator.__init__(generator, SPEC, False, LIMITS, None, AdapterLimits(most=2))
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

    def keep_threads_busy() -> None:
        for _ in range(FILE_THREADS):
            generator._files.submit(time.sleep, 0.5)

    keep_threads_busy()
    monkeypatch.setattr("deployments.generator.read_audio", lambda file, limits: keep_threads_busy())
    told: list[object] = []
    async for message in generator.generate(SPEC, job(), np.zeros(4, np.uint8), conditioning()):
        told.append(message)
    assert isinstance(told[0], Progress)
    assert isinstance(told[-1], Rendered)
    first_step = next(place for place, one in enumerate(told[1:], 1) if isinstance(one, Progress))
    assert sum(isinstance(one, Heartbeat) for one in told[:first_step]) > 5
    assert sum(isinstance(one, Heartbeat) for one in told[first_step:]) > 5


async def test_a_call_that_is_cancelled_before_it_reached_the_engine_never_reaches_it(generator: Generator) -> None:
    for _ in range(FILE_THREADS):
        generator._files.submit(time.sleep, 0.3)
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
