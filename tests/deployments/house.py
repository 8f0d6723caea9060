"""A JobManager with scripted replicas in place of Serve's handles."""

import asyncio
import dataclasses
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import RequestCancelledError

from acestep_engine.checkpoint import NANO_PATH
from acestep_engine.conditioning import EncodeRequest
from acestep_engine.params import GenerationParams, ModelSpec, Progress, Timings
from deployments.callbacks import CallbackRules
from deployments.job_manager import JobManager, JobManagerConfig
from deployments.lease import LeaseTerms
from deployments.messages import (
    ByteArray,
    Heartbeat,
    JobView,
    Rendered,
    RenderJob,
    Submission,
)
from deployments.models import Models
from deployments.results import Folders
from deployments.retention import RetentionTerms

AUDIO = np.arange(4, dtype=np.uint8)
SONG = Rendered(AUDIO[:0], np.zeros((8, 16, 2), np.float32), 1.5, Timings(1.0, 0.5), "nano", "cpu")
Message = Progress | Heartbeat | ByteArray | Rendered
Script = Callable[[RenderJob], AsyncIterator[Message]]


class ScriptedResponse:
    """As Serve's DeploymentResponseGenerator: an iteration that another task may cancel."""

    def __init__(self, messages: AsyncIterator[Message]) -> None:
        self._messages = messages
        self._cancelled = asyncio.Event()

    def cancel(self) -> None:
        self._cancelled.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        following = asyncio.ensure_future(anext(self._messages))
        cancelled = asyncio.ensure_future(self._cancelled.wait())
        try:
            await asyncio.wait([following, cancelled], return_when=asyncio.FIRST_COMPLETED)
            if not self._cancelled.is_set():
                return await following
            raise RequestCancelledError
        finally:
            following.cancel()
            cancelled.cancel()
            await asyncio.gather(following, cancelled, return_exceptions=True)


class ScriptedGenerator:
    """As the Generator's handle. `started` are the jobs of the songs that it was given, in order."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.started: list[str] = []
        self.sources: list[Any] = []
        self.jobs: list[RenderJob] = []
        self.encodings: list[tuple[object, ...]] = []

    def options(self, **options: object) -> Self:
        return self

    def remote(self, spec: ModelSpec, job: RenderJob, source: object, *encodings: object) -> ScriptedResponse:
        self.started.append(job.request_id)
        self.sources.append(source)
        self.jobs.append(job)
        self.encodings.append(encodings)
        return ScriptedResponse(self.script(job))


class ScriptedTextEncoder:
    """As the TextEncoder's handle. `asked` is all that it was asked to encode, in order; a call answers its number."""

    def __init__(self) -> None:
        self.asked: list[EncodeRequest] = []

    def options(self, **options: object) -> Self:
        return self

    def remote(self, spec: ModelSpec, request: EncodeRequest) -> int:
        self.asked.append(request)
        return len(self.asked)


async def sing(job: RenderJob) -> AsyncIterator[Message]:
    yield Progress("diffusion", 0, 2)
    yield Progress("diffusion", 2, 2)
    yield AUDIO[:3]
    yield dataclasses.replace(SONG, rest=AUDIO[3:])


async def sing_for_ever(job: RenderJob) -> AsyncIterator[Message]:
    yield Progress("diffusion", 1, 2)
    await asyncio.Event().wait()


def failing(error: Exception) -> Script:
    """Raises as Serve does what was raised in a replica."""

    async def fail(job: RenderJob) -> AsyncIterator[Message]:
        yield Progress("diffusion", 1, 2)
        raise RayTaskError("generate", "Traceback of the replica: secret", error).as_instanceof_cause()

    return fail


async def die(job: RenderJob) -> AsyncIterator[Message]:
    yield Progress("diffusion", 1, 2)
    raise ActorDiedError


def submission(request_id: str | None = None, **changes: Any) -> Submission:
    song = GenerationParams("piano", "", 1.0, seed=3)
    return dataclasses.replace(
        Submission(request_id or uuid.uuid4().hex, (song,), "wav", {"prompt": "piano"}), **changes
    )


class Manager(JobManager):
    def __del__(self) -> None:  # type: ignore[override]
        """Serve awaits the finaliser of a JobManager; Python itself would not."""


class House:
    """A JobManager on a folder, which may be closed and opened again."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.generator = ScriptedGenerator(sing)
        self.text_encoder = ScriptedTextEncoder()
        nano = ModelSpec("nano", str(NANO_PATH))
        self.config = JobManagerConfig(
            folders=Folders(root / "state", root / "outputs", "./outputs"),
            models=Models(nano, {"nano": nano}),
            loras={},
            build_id="b",
            songs_per_size=1,
            queue_size=5,
            lease_terms=LeaseTerms(lease_s=30, stall_s=60),
            redis_url=None,
            retention=RetentionTerms(result_ttl_s=3600, row_ttl_s=7200),
            callbacks=CallbackRules(),
        )
        self.manager: JobManager

    async def open(self, **changes: Any) -> None:
        self.config = dataclasses.replace(self.config, **changes)
        manager = Manager.__new__(Manager)  # as Serve does: the constructor is a coroutine
        starting: Any = JobManager.__init__(manager, self.config, self.generator, self.text_encoder)
        await starting
        self.manager = manager

    async def close(self) -> None:
        await self.manager.stop()

    async def submit(self, **changes: Any) -> str:
        return (await self.manager.submit(submission(**changes))).request_id

    async def end_of(self, request_id: str) -> JobView:
        view = await self.manager.wait(request_id, 10)
        assert view.ended, view
        return view

    async def until_running(self, request_id: str) -> None:
        async def runs() -> bool:
            return (await self.manager.status(request_id)).status == "processing"

        await until(runs)

    def files(self) -> list[str]:
        """What lies there of jobs."""
        folders = ("state/results", "state/latents", "state/sources", "outputs")
        return [str(p.relative_to(self.root)) for folder in folders for p in (self.root / folder).rglob("*")]


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await condition():  # noqa: ASYNC110  # it is on the disk, where no event tells of it
            await asyncio.sleep(0.01)
