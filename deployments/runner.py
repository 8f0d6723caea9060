"""Runs one job from its first attempt to its end."""

import asyncio
import dataclasses
import json
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
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
from deployments.messages import ByteArray, JobResult, Rendered, RenderJob, StorageError
from deployments.results import JobFiles
from deployments.store.protocol import Ending, JobRow, JobStore

MAX_ATTEMPTS = 3
RETRY_PAUSE_S = 0.5  # for Serve to notice that the replica is gone
STORE_RETRY_S = 1.0
FIRST_GUESS_S = 30.0  # how long a job takes, until some were seen

logger = logging.getLogger("ray.serve")
T = TypeVar("T")


class LiveJob:
    """A job that has not ended, or has just now. That it runs, and how far it is, is kept here only."""

    def __init__(self, row: JobRow) -> None:
        self.row = row
        self.progress: Progress | None = None
        self.ended = asyncio.Event()
        self.audio: ByteArray | None = None  # once it has completed, for those who wait for it
        self.response: DeploymentResponseGenerator[Any] | None = None  # the Generator's call, while there is one

    def has_ended(self) -> bool:
        return self.row.ended  # a call, because anybody may end it during any await

    async def wait(self, timeout_s: float) -> None:
        """Until it has ended, at most so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self.ended.wait()

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
        self._last_attempt = asyncio.Lock()

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
            await self._tidy(job.row)

    async def end(self, job: LiveJob, ending: Ending) -> bool:
        """End the job unless it has ended; True if this call did it. Raises StorageError."""
        if not await self._store.finish(job.row.request_id, ending, job.row.started_at):
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
        await self._tidy(job.row)
        return True

    async def _tidy(self, row: JobRow) -> None:
        """Remove the files that an ended job leaves behind. What cannot be removed is of no use to anybody."""
        try:
            if row.outcome != "completed":
                await asyncio.to_thread(self._files.discard, row)
            elif row.has_source:
                await asyncio.to_thread(self._files.remove_source, row.request_id)
        except OSError as error:
            logger.warning("%s: its files could not be removed: %s", row.request_id, error)

    async def _attempts(self, job: LiveJob) -> Ending | None:
        """The end that the job comes to by itself, or None if somebody else ended it. Raises _Failed.

        A replica that dies takes all its jobs along, whichever of them it died of. Last attempts run one at a time, so
        that two jobs which may be the cause never use up each other's.
        """
        while (attempt := job.row.attempts + 1) <= MAX_ATTEMPTS:
            try:
                async with self._last_attempt if attempt == MAX_ATTEMPTS else nullcontext():
                    rendered = await self._render(job)
                return None if rendered is None else await self._publish(job, rendered)
            except _Lost as error:
                logger.warning("%s lost its replica in attempt %d: %s", job.row.request_id, attempt, error)
                job.progress = None
                await asyncio.sleep(RETRY_PAUSE_S)
        raise _Failed(gave_up(MAX_ATTEMPTS))

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
        conditioning = self._text_encoder.remote(spec, row.params)  # not awaited: it travels by reference
        if not await self._count_attempt(job):
            return None
        render_job = RenderJob(row.request_id, row.params, row.audio_format, _tags(row, spec.name))
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

    async def _count_attempt(self, job: LiveJob) -> bool:
        """Write down that a Generator gets the job, before it can die of it. False if somebody ended the job."""
        attempts = await _until_stored(lambda: self._store.begin_attempt(job.row.request_id))
        if attempts is None or job.has_ended():
            return False
        job.row = dataclasses.replace(job.row, attempts=attempts)
        return True

    async def _follow(self, job: LiveJob, response: DeploymentResponseGenerator[Any]) -> Rendered | None:
        """Take note of the progress until the song is there. Raises TimeoutError once there is none any more."""
        clock_now = asyncio.get_running_loop().time
        rendered: Rendered | None = None
        async with asyncio.timeout(None) as timeout:  # waiting for a replica, or for its model, is not limited
            async for message in response:
                if isinstance(message, Rendered):
                    rendered = message
                    continue
                timeout.reschedule(clock_now() + self._job_timeout_s)
                job.progress = message
                if job.row.status == "pending":
                    job.row = dataclasses.replace(job.row, status="processing", started_at=time.time())
        return rendered

    async def _publish(self, job: LiveJob, rendered: Rendered) -> Ending:
        """Write the files, all at a time. They are complete on the disk when this returns. Raises _Failed."""
        row = job.row
        try:
            *_, audio_path = await _all_ended(
                asyncio.to_thread(self._files.write_audio, row.request_id, row.audio_format, rendered.audio),
                asyncio.to_thread(self._files.write_latents, row.request_id, rendered.latents),
                self._write_output(job, rendered.audio),
            )
        except OSError:
            logger.exception("%s cannot be written", row.request_id)
            raise _Failed(STORAGE) from None
        job.audio = rendered.audio
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

    async def _write_output(self, job: LiveJob, audio: ByteArray) -> str | None:
        """What clients are told as the path of the saved song; None for a job that saves none. Raises OSError."""
        if not job.row.save_file:
            return None
        name = await self._claim_output(job)
        return await asyncio.to_thread(self._files.write_output, name, audio, job.row.request_json)

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


async def _all_ended(*writes: Awaitable[str | None]) -> list[str | None]:
    """The answers of all, or the first exception, once nothing is written any more."""
    answers: list[str | None] = []
    for answer in await asyncio.gather(*writes, return_exceptions=True):
        if isinstance(answer, BaseException):
            raise answer
        answers.append(answer)
    return answers


async def _until_stored(write: Callable[[], Awaitable[T]]) -> T:
    """Write again and again while the store cannot: an end that was reached must not be lost."""
    while True:
        try:
            return await write()
        except StorageError as error:
            logger.error("%s", error)
            await asyncio.sleep(STORE_RETRY_S)
