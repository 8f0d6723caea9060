"""Runs one job from its first attempt to its end."""

import asyncio
import dataclasses
import json
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext, suppress
from typing import Any

import numpy as np
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from safetensors import SafetensorError

from acestep_engine.conditioning import EncodeRequest
from acestep_engine.errors import RequestError
from acestep_engine.params import GenerationParams, Progress
from acestep_engine.requests import Latents
from deployments.encodings import Encodings
from deployments.failures import (
    INTERNAL,
    SOURCE_LOST,
    STORAGE,
    Failure,
    cause_of,
    explain,
    gave_up,
    is_memory_kill,
    is_replica_loss,
    killed_for_memory,
    timed_out,
)
from deployments.fleet import Fleet
from deployments.lease import Lease, LeaseTerms
from deployments.live_jobs import LiveJob, LiveSong
from deployments.messages import ByteArray, Heartbeat, Rendered, RenderJob, SongResult, StorageError, request_of_song
from deployments.pace import Pace
from deployments.results import JobFiles
from deployments.store.patience import until_stored
from deployments.store.protocol import Ending, JobRow, JobStore, StoreDeposedError

MAX_ATTEMPTS = 3
MAX_MEMORY_KILLS = 10  # of one song's replicas that do not count as attempts
MEMORY_PAUSE_S = 5.0  # for the memory to be given back
RETRY_PAUSE_S = 0.5  # for Serve to notice that the replica is gone

logger = logging.getLogger("ray.serve")


class _Lost(Exception):
    """The replica that ran an attempt is gone."""


class _KilledForMemory(_Lost):
    """The machine had no memory left, perhaps through no fault of the song."""


class _Failed(Exception):
    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


class Runner:
    """`on_place` is called whenever a job has no use for one of its places any more; `on_end` once for each job, when
    its end is on the disk and before those who wait for it hear of it.
    """

    def __init__(
        self,
        store: JobStore,
        files: JobFiles,
        fleet: Fleet,
        generator: DeploymentHandle[Any],
        text_encoder: DeploymentHandle[Any],
        lease_terms: LeaseTerms,
        on_place: Callable[[LiveJob], None],
        on_end: Callable[[LiveJob], None],
    ) -> None:
        self._store = store
        self._files = files
        self._fleet = fleet
        self._generator = generator.options(method_name="generate", stream=True)
        self._encodings = Encodings(text_encoder)
        self._lease_terms = lease_terms
        self._on_place = on_place
        self._on_end = on_end
        self.pace = Pace()
        self._last_attempt = asyncio.Lock()

    async def run(self, job: LiveJob) -> None:
        """Try until the job ends. Returns when it has; never raises but CancelledError.

        Returns without an end when another JobManager owns the store: that one makes the job.
        """
        try:
            await self._run(job)
        except StoreDeposedError as error:
            logger.error("%s is given up: %s", job.row.request_id, error)
            job.abort()

    async def _run(self, job: LiveJob) -> None:
        """Raises StoreDeposedError."""
        try:
            ending = await self._to_its_end(job)
        except asyncio.CancelledError:  # the JobManager stops
            with suppress(StorageError):
                await self._store.set_attempts(job.row.request_id, _attempts(job))
            raise
        if ending is not None and not job.row.ended:
            try:
                await until_stored(lambda: self.end(job, ending))
            except StoreDeposedError:
                raise
            except Exception:  # what it says cannot be written
                logger.exception("the end of %s cannot be written", job.row.request_id)
                await until_stored(lambda: self.end(job, _failed(INTERNAL)))
        if job.row.outcome == "completed":
            self._learn(job.row)
        else:
            await self._tidy(job.row)  # somebody may have ended it while its files were being written
        while job.places:
            self._on_place(job)

    async def end(self, job: LiveJob, ending: Ending) -> bool:
        """End the job unless it has ended; True if this call did it. Raises StorageError."""
        async with job.ending:
            if job.row.ended:
                return False
            if not await self._store.finish(job.row.request_id, ending, job.row.started_at):
                await self._adopt_end(job)
                return False
            row = dataclasses.replace(
                job.row,
                status=ending.status,
                outcome=ending.outcome,
                completed_at=ending.at,
                results=ending.results,
                error=ending.error,
                error_code=ending.error_code,
            )
            self._note_end(job, row)
        await self._tidy(job.row)
        return True

    async def _adopt_end(self, job: LiveJob) -> None:
        """Accept that the store has this job ended, although this process did not end it. Raises StorageError.

        The files of such a job belong to the end that the store knows: a completed job keeps them.
        """
        row = await self._store.get(job.row.request_id)
        if row is None:  # it ended so long ago that it is forgotten
            failed = _failed(INTERNAL)
            row = dataclasses.replace(job.row, status=failed.status, outcome=failed.outcome, completed_at=failed.at)
            row = dataclasses.replace(row, error=failed.error, error_code=failed.error_code)
        if not row.ended:
            raise StorageError("the job store refuses a change of a job that has not ended")
        logger.warning("%s has ended already: %s", row.request_id, row.outcome)
        self._note_end(job, row)

    async def _end_as_stored(self, job: LiveJob) -> None:
        """Accept the end that the store knows, unless this process knows one. Raises StorageError."""
        async with job.ending:
            if not job.row.ended:
                await self._adopt_end(job)

    def _note_end(self, job: LiveJob, row: JobRow) -> None:
        """Tell everybody that a job has ended as `row` says."""
        job.row = row
        job.abort()
        self._on_end(job)
        job.ended.set()

    async def _tidy(self, row: JobRow) -> None:
        """Remove the files that an ended job leaves behind. What cannot be removed is of no use to anybody."""
        try:
            if row.outcome in ("failed", "cancelled"):
                await asyncio.to_thread(self._files.discard, row)
            elif row.source is not None:  # as long as the result is there, it can be made again
                await asyncio.to_thread(self._files.use_source, row.source)
        except OSError as error:
            logger.warning("%s: its files could not be removed: %s", row.request_id, error)

    async def _to_its_end(self, job: LiveJob) -> Ending | None:
        """The end that the job comes to by itself, or None if somebody else ended it."""
        await asyncio.gather(*(self._make(job, song) for song in job.songs))
        try:
            if not job.is_over():
                return await self._complete(job)
        except _Failed as error:
            return _failed(error.failure)
        except StoreDeposedError:
            raise
        except Exception:
            logger.exception("%s failed in a way nobody foresaw", job.row.request_id)
            return _failed(INTERNAL)
        return None if job.failure is None else _failed(job.failure)

    async def _make(self, job: LiveJob, song: LiveSong) -> None:
        """Have one song made, and give back its place. A song that fails fails its job."""
        await job.take_place()
        try:
            await self._try(job, song)
        except _Failed as error:
            job.fail(error.failure)
        except StoreDeposedError:
            raise
        except Exception:
            logger.exception("%s failed in a way nobody foresaw", job.row.request_id)
            job.fail(INTERNAL)
        if not job.is_over():
            self._on_place(job)

    async def _try(self, job: LiveJob, song: LiveSong) -> None:
        """Until the song's files are on the disk, or the job is over. Raises _Failed.

        A replica that dies takes all its songs along, whichever of them it died of. Last attempts run one at a time, so
        that two songs which may be the cause never use up each other's. One that is killed because its machine has no
        memory left uses up no attempt: whatever took the memory, it is often another program. That is bounded too.
        """
        memory_kills = 0
        while song.attempts < MAX_ATTEMPTS:
            is_last = song.attempts + 1 == MAX_ATTEMPTS
            try:
                async with self._last_attempt if is_last else nullcontext():
                    rendered = await self._render(job, song)
                if rendered is not None:
                    await self._publish(job, song, rendered)
                return
            except _KilledForMemory as error:
                memory_kills += 1
                logger.warning("%s lost its replica, which was killed for memory: %s", job.row.request_id, error)
                if memory_kills > MAX_MEMORY_KILLS and not job.is_over():
                    raise _Failed(killed_for_memory(memory_kills)) from None
                song.attempts -= 1
                with suppress(StorageError):  # the JobManager may be killed next
                    await self._store.set_attempts(job.row.request_id, _attempts(job))
                song.note(None)
                self._encodings.forget()
                await asyncio.sleep(MEMORY_PAUSE_S)
            except _Lost as error:
                logger.warning("%s lost its replica in attempt %d: %s", job.row.request_id, song.attempts, error)
                song.note(None)
                self._encodings.forget()
                await asyncio.sleep(RETRY_PAUSE_S)
        if not job.is_over():
            raise _Failed(gave_up(MAX_ATTEMPTS))

    async def _render(self, job: LiveJob, song: LiveSong) -> Rendered | None:
        """What a Generator made, or None if the job is over. Raises _Lost, _Failed."""
        source, latent_space = await self._read_source(job.row)
        if job.is_over():
            return None
        spec, row = self._fleet.spec, job.row
        words = _words_of(song.params)
        encodings = [self._encodings.get(spec, request) for request in words]  # not awaited: they travel by reference
        if not await self._count_attempt(job, song):
            return None
        tags = _tags(row, song.params, spec.name)
        render_job = RenderJob(row.request_id, song.params, row.audio_format, tags, row.priority, latent_space)
        song.audio.begin()
        song.call_id = render_job.call_id
        song.response = self._generator_for(song.params).remote(spec, render_job, source, *encodings)
        try:
            rendered = await self._follow(job, song, song.response)
        except asyncio.CancelledError:  # the JobManager stops
            song.abort()
            song.attempts -= 1
            raise
        except (RayError, RayServeException) as error:
            if job.is_over():
                return None
            raise _judge(job.row.request_id, error) from error
        finally:
            song.response = None
        for request, encoding in zip(words, encodings, strict=True):
            self._encodings.keep(spec, request, encoding)
        return rendered

    def _generator_for(self, song: GenerationParams) -> DeploymentHandle[Any]:
        """Rather a replica that has the song's adapter."""
        adapter = song.active_adapter
        return self._generator if adapter is None else self._generator.options(multiplexed_model_id=adapter.digest)

    async def _read_source(self, row: JobRow) -> tuple[ByteArray | Latents | None, str]:
        """Return what a job begins from, and the space of its latents if they say so. Raises _Failed."""
        if row.source is None:
            return None, ""
        try:
            latent_space = await asyncio.to_thread(self._files.latent_space, row.source)
            return await asyncio.to_thread(self._files.read_source, row.source), latent_space
        except (OSError, SafetensorError):
            raise _Failed(SOURCE_LOST) from None

    async def _count_attempt(self, job: LiveJob, song: LiveSong) -> bool:
        """Write down that a Generator gets the song, before it can die of it. False if the job is over."""
        song.attempts += 1
        attempts = _attempts(job)
        if not await until_stored(lambda: self._store.set_attempts(job.row.request_id, attempts)):
            await until_stored(lambda: self._end_as_stored(job))
            return False
        return not job.is_over()

    async def _follow(
        self, job: LiveJob, song: LiveSong, response: DeploymentResponseGenerator[Any]
    ) -> Rendered | None:
        """Take note of what the Generator tells until the song is there. What it tells after its lease is not heard.

        Raises _Lost when the lease lapses, _Failed when the engine stands still.
        """
        clock_now, lease = asyncio.get_running_loop().time, Lease(self._lease_terms)
        rendered: Rendered | None = None
        try:
            async with asyncio.timeout(None) as timeout:
                async for message in response:
                    steps = message.engine_steps if isinstance(message, Heartbeat) else None
                    timeout.reschedule(lease.renew(clock_now(), steps))
                    match message:
                        case Rendered():
                            song.audio.add(message.rest)
                            rendered = message
                        case np.ndarray():
                            song.audio.add(message)
                        case Progress():
                            self._note_progress(job, song, message)
        except TimeoutError:
            song.abort()
            if lease.has_stalled(clock_now()):
                raise _Failed(timed_out(self._lease_terms.stall_s)) from None
            raise _Lost("its lease lapsed") from None
        if rendered is None and not job.is_over():
            raise _Lost("its call ended without the song")
        return rendered

    def _note_progress(self, job: LiveJob, song: LiveSong, progress: Progress) -> None:
        song.note(progress)
        job.tell_progress()
        if job.row.status == "pending":
            job.row = dataclasses.replace(job.row, status="processing", started_at=time.time())

    async def _publish(self, job: LiveJob, song: LiveSong, rendered: Rendered) -> None:
        """Write a song's files, all at a time. They are complete on the disk when this returns. Raises _Failed."""
        row, audio = job.row, song.audio.finish()
        try:
            await _all_ended(
                asyncio.to_thread(self._files.write_audio, row.request_id, song.index, row.audio_format, audio),
                asyncio.to_thread(
                    self._files.write_latents, row.request_id, song.index, rendered.latents, rendered.latent_space
                ),
            )
        except OSError:
            logger.exception("%s cannot be written", row.request_id)
            raise _Failed(STORAGE) from None
        timings = dataclasses.asdict(rendered.timings)
        song.result = SongResult(
            model=rendered.model,
            device=rendered.device,
            duration_s=rendered.duration_s,
            audio_bytes=audio.nbytes,
            timings=timings.pop("extra") | timings,
            edition=song.audio.edition,
        )
        song.audio.close(complete=True)

    async def _complete(self, job: LiveJob) -> Ending:
        """The end of a job whose songs are all there, saved where it saves them. Raises _Failed."""
        results = [song.result for song in job.songs if song.result is not None]
        if job.row.save_file:
            try:
                results = await self._save(job, results)
            except OSError:
                logger.exception("%s cannot be saved", job.row.request_id)
                raise _Failed(STORAGE) from None
        return Ending("completed", time.time(), results=tuple(results))

    async def _save(self, job: LiveJob, results: Sequence[SongResult]) -> list[SongResult]:
        """Put the songs into the output folder: their results, with the paths that clients read. Raises OSError.

        The names are the same in each attempt, so that no song is published twice.
        """
        if not job.row.output_paths:
            claim = self._files.claim_outputs
            names = await asyncio.to_thread(claim, job.row.audio_format, time.time(), len(job.songs))
            job.row = dataclasses.replace(job.row, output_paths=names)
            await until_stored(lambda: self._store.claim_outputs(job.row.request_id, names))
        save = self._files.save_song
        return [await asyncio.to_thread(save, job.row, index, result) for index, result in enumerate(results)]

    def _learn(self, row: JobRow) -> None:
        if row.started_at is not None and row.completed_at is not None:
            self.pace.note(row.started_at, row.completed_at)


def _attempts(job: LiveJob) -> int:
    return max(song.attempts for song in job.songs)


def _judge(request_id: str, error: Exception) -> _Lost | _Failed:
    """Whether to try again, or what to tell the client."""
    cause = cause_of(error)
    if is_memory_kill(cause):
        return _KilledForMemory(type(cause).__name__)
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


def _words_of(song: GenerationParams) -> list[EncodeRequest]:
    """What is to be encoded for it: its words, and of an edited song those of what it is to become."""
    songs = [song]
    if song.task == "edit":
        songs.append(dataclasses.replace(song, prompt=song.edit_target_prompt, lyrics=song.edit_target_lyrics))
    return [EncodeRequest.of_song(one) for one in songs]


def _tags(row: JobRow, song: GenerationParams, model: str) -> dict[str, str]:
    """What the audio file says of itself: its prompt, and the request that makes it again."""
    return {
        "prompt": song.prompt,
        "lyrics": song.lyrics,
        "seed": str(song.seed),
        "model": model,
        "parameters": json.dumps(request_of_song(row.request_json, song), ensure_ascii=False),
    }


async def _all_ended(*writes: Awaitable[None]) -> None:
    """Raises the first exception, once nothing is written any more."""
    for answer in await asyncio.gather(*writes, return_exceptions=True):
        if isinstance(answer, BaseException):
            raise answer
