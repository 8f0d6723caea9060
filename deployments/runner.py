"""Runs one job from its first attempt to its end."""

import asyncio
import dataclasses
import json
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from acestep_engine.errors import RequestError
from acestep_engine.params import Progress
from deployments.failures import (
    INTERNAL,
    SOURCE_LOST,
    STORAGE,
    Failure,
    cause_of,
    explain,
    gave_up,
    is_replica_loss,
    timed_out,
)
from deployments.fleet import Fleet
from deployments.messages import JobResult, Rendered, RenderJob, StorageError
from deployments.results import JobFiles
from deployments.store.protocol import Ending, JobRow, JobStore

MAX_ATTEMPTS = 3
RETRY_PAUSE_S = 0.5  # for Serve to notice that the replica is gone
STORE_RETRY_S = 1.0
FIRST_GUESS_S = 30.0  # how long a job takes, until some were seen

logger = logging.getLogger("ray.serve")
T = TypeVar("T")


class LiveJob:
    """A job that has not ended, or has just now. Progress is kept here only."""

    def __init__(self, row: JobRow) -> None:
        self.row = row
        self.progress: Progress | None = None
        self.ended = asyncio.Event()
        self.response: DeploymentResponseGenerator[Any] | None = None  # the Generator's call, while there is one

    def has_ended(self) -> bool:
        return self.row.ended  # a call, because anybody may end it during any await

    def abort(self) -> None:
        """Stop the Generator's call, if there is one, within one forward."""
        if self.response is not None:
            self.response.cancel()
            self.response = None


class _Lost(Exception):
    """The replica that ran an attempt is gone."""


class _Failed(Exception):
    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


class Runner:
    """`on_end` is called once for each job, when its end is on the disk and before those who wait for it hear of it."""

    def __init__(
        self,
        store: JobStore,
        files: JobFiles,
        fleet: Fleet,
        generator: DeploymentHandle[Any],
        text_encoder: DeploymentHandle[Any],
        job_timeout_s: float,
        on_end: Callable[[LiveJob], None],
    ) -> None:
        self._store = store
        self._files = files
        self._fleet = fleet
        self._generator = generator.options(method_name="generate", stream=True)
        self._text_encoder = text_encoder.options(method_name="encode")
        self._job_timeout_s = job_timeout_s
        self._on_end = on_end
        self._typical_s = FIRST_GUESS_S

    def expected_wait_s(self, ended_jobs: int) -> float:
        """Seconds until about so many more jobs have ended on one replica."""
        return max(1.0, self._typical_s * ended_jobs)

    async def run(self, job: LiveJob) -> None:
        """Try until the job ends. Returns when it has; never raises but CancelledError."""
        try:
            ending = await self._attempts(job)
        except _Failed as error:
            ending = _failed(error.failure)
        except Exception:
            logger.exception("%s failed in a way nobody foresaw", job.row.request_id)
            ending = _failed(INTERNAL)
        if ending is not None and not job.has_ended():
            await _until_stored(lambda: self.end(job, ending))
        if job.row.outcome == "completed":
            self._learn(job.row)
        elif ending is not None:  # cancelled while its files were being written
            await asyncio.to_thread(self._files.discard, job.row)

    async def end(self, job: LiveJob, ending: Ending) -> bool:
        """End the job unless it has ended; True if this call did it. Raises StorageError."""
        if not await self._store.finish(job.row.request_id, ending):
            return False
        job.row = dataclasses.replace(
            job.row,
            status=ending.status,
            outcome=ending.outcome,
            completed_at=ending.at,
            result=ending.result,
            error=ending.error,
            error_code=ending.error_code,
        )
        job.abort()
        self._on_end(job)
        job.ended.set()
        if ending.outcome == "completed":
            await asyncio.to_thread(self._files.remove_source, job.row.request_id)
        else:
            await asyncio.to_thread(self._files.discard, job.row)
        return True

    async def _attempts(self, job: LiveJob) -> Ending | None:
        """The end that the job comes to by itself, or None if somebody else ended it. Raises _Failed."""
        request_id = job.row.request_id
        while True:
            attempt = await _until_stored(lambda: self._store.begin_attempt(request_id))
            if attempt is None or job.has_ended():
                return None
            if attempt > MAX_ATTEMPTS:
                raise _Failed(gave_up(MAX_ATTEMPTS))
            try:
                rendered = await self._render(job)
                return None if rendered is None else await self._publish(job, rendered)
            except _Lost as error:
                logger.warning("%s lost its replica in attempt %d: %s", request_id, attempt, error)
                job.progress = None
                await asyncio.sleep(RETRY_PAUSE_S)

    async def _render(self, job: LiveJob) -> Rendered | None:
        """What a Generator made, or None if somebody ended the job. Raises _Lost, _Failed."""
        try:
            source = None
            if job.row.has_source:
                source = await asyncio.to_thread(self._files.read_source, job.row.request_id)
        except OSError:
            raise _Failed(SOURCE_LOST) from None
        if job.has_ended():
            return None
        spec, row = self._fleet.spec, job.row
        render_job = RenderJob(row.request_id, row.params, row.audio_format, _tags(row, spec.name))
        conditioning = self._text_encoder.remote(spec, row.params)  # not awaited: it travels by reference
        job.response = self._generator.remote(spec, render_job, conditioning, source)
        try:
            return await self._follow(job, job.response)
        except asyncio.CancelledError:  # the JobManager stops
            job.abort()
            with suppress(StorageError):
                await self._store.give_back(job.row.request_id)
            raise
        except TimeoutError:
            job.abort()
            raise _Failed(timed_out(self._job_timeout_s)) from None
        except (RayError, RayServeException) as error:
            if job.has_ended():
                return None
            raise _judge(job.row.request_id, error) from error
        finally:
            job.response = None

    async def _follow(self, job: LiveJob, response: DeploymentResponseGenerator[Any]) -> Rendered | None:
        """Take note of the progress until the song is there. Raises TimeoutError."""
        clock_now = asyncio.get_running_loop().time
        rendered: Rendered | None = None
        async with asyncio.timeout(None) as timeout:  # waiting for a replica, or for its model, is not limited
            async for message in response:
                if isinstance(message, Rendered):
                    rendered = message
                    continue
                if timeout.when() is None:
                    timeout.reschedule(clock_now() + self._job_timeout_s)
                job.progress = message
                if job.row.status == "pending":
                    await self._mark_started(job)
        return rendered

    async def _mark_started(self, job: LiveJob) -> None:
        at = time.time()
        if await _until_stored(lambda: self._store.start(job.row.request_id, at)) and not job.has_ended():
            job.row = dataclasses.replace(job.row, status="processing", started_at=at)

    async def _publish(self, job: LiveJob, rendered: Rendered) -> Ending:
        """Write the files. They are complete on the disk when the ending is stored. Raises _Failed."""
        row = job.row
        audio_path = None
        try:
            await asyncio.to_thread(self._files.write_result, row.request_id, row.audio_format, rendered)
            if row.save_file:
                name = await self._claim_output(job)
                audio_path = await asyncio.to_thread(self._files.write_output, name, rendered.audio, row.request_json)
        except OSError:
            logger.exception("%s cannot be written", row.request_id)
            raise _Failed(STORAGE) from None
        timings = dataclasses.asdict(rendered.timings)
        result = JobResult(
            model=rendered.model,
            device=rendered.device,
            duration_s=rendered.duration_s,
            audio_bytes=rendered.audio.nbytes,
            timings=timings.pop("extra") | timings,
            audio_path=audio_path,
        )
        return Ending("completed", time.time(), result=result)

    async def _claim_output(self, job: LiveJob) -> str:
        """The job's file name in the output folder; the same in each attempt, so that no song is published twice."""
        if job.row.output_path is None:
            name = await asyncio.to_thread(self._files.claim_output, job.row.audio_format, time.time())
            job.row = dataclasses.replace(job.row, output_path=name)
            await _until_stored(lambda: self._store.claim_output(job.row.request_id, name))
        assert job.row.output_path is not None
        return job.row.output_path

    def _learn(self, row: JobRow) -> None:
        if row.started_at is not None and row.completed_at is not None:
            self._typical_s += 0.2 * (row.completed_at - row.started_at - self._typical_s)


def _judge(request_id: str, error: Exception) -> _Lost | _Failed:
    """Whether to try again, or what to tell the client."""
    cause = cause_of(error)
    if is_replica_loss(cause):
        return _Lost(type(cause).__name__)
    failure = explain(cause)
    if failure is None:
        logger.error("%s failed in a way nobody foresaw", request_id, exc_info=error)
    elif not isinstance(cause, RequestError):
        logger.error("%s failed: %s", request_id, cause)
    return _Failed(failure or INTERNAL)


def _failed(failure: Failure) -> Ending:
    return Ending("failed", time.time(), error=failure.sentence, error_code=failure.code)


def _tags(row: JobRow, model: str) -> dict[str, str]:
    """What the audio file says of itself: its prompt, and the request that makes it again."""
    return {
        "prompt": row.params.prompt,
        "lyrics": row.params.lyrics,
        "seed": str(row.params.seed),
        "model": model,
        "parameters": json.dumps(row.request_json, ensure_ascii=False),
    }


async def _until_stored(write: Callable[[], Awaitable[T]]) -> T:
    """Write again and again while the store cannot: an end that was reached must not be lost."""
    while True:
        try:
            return await write()
        except StorageError as error:
            logger.error("%s", error)
            await asyncio.sleep(STORE_RETRY_S)
