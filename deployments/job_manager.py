"""The deployment that owns every job: the store, the queue, the files, who runs next. It has one replica."""

import asyncio
import contextvars
import dataclasses
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from acestep_engine.caching import LruCache
from acestep_engine.errors import RequestError
from deployments.admission import Admission
from deployments.autoscaling import WANTED_SONGS
from deployments.callbacks import CallbackRules
from deployments.deliveries import Deliveries
from deployments.events import EventLog
from deployments.failures import CANCELLED, CLIENT_LEFT, cause_of, is_unexpected
from deployments.fleet import Fleet
from deployments.lease import LeaseTerms
from deployments.live_jobs import LiveJob
from deployments.loras import LoraRegistry
from deployments.messages import (
    AudioFile,
    AudioPart,
    ByteArray,
    EventBatch,
    JobEndedError,
    JobView,
    LoraInfo,
    LyricReading,
    ModelUnavailableError,
    QueueStatus,
    ReplicaState,
    Resend,
    ServiceStatus,
    SourceSong,
    StorageError,
    Submission,
)
from deployments.models import Models
from deployments.results import Folders, JobFiles
from deployments.retention import Retention, RetentionTerms
from deployments.runner import Runner
from deployments.song_reader import SongReader
from deployments.state_lock import StateLock
from deployments.store.protocol import Ending, JobRow, JobStore, StoreDeposedError
from deployments.store.redis import RedisStore
from deployments.store.sqlite import SqliteStore
from deployments.views import end_event, view_of
from deployments.waiting import WaitingJobs

KEPT_LOGS = 200  # of jobs that ended last, for those who come back to follow them
ARRIVAL_POLL_S = 0.1
KEPT_ENDED = 1_000  # rows of ended jobs that are written again if the store loses its last changes

logger = logging.getLogger("ray.serve")
T = TypeVar("T")


@dataclass(frozen=True)
class JobManagerConfig:
    """Everything the JobManager is told. `build_id` is new whenever the application is built."""

    folders: Folders
    models: Models
    loras: Mapping[str, str]  # name to absolute path
    build_id: str
    songs_per_size: int  # songs of one size that a Generator replica is given at a time
    queue_size: int
    lease_terms: LeaseTerms
    redis_url: str | None  # where the jobs are kept; None: in the state folder
    retention: RetentionTerms
    callbacks: CallbackRules


class JobManager:
    """All methods but those that submit, `result` and `initialize` answer from memory or with one read of the store."""

    async def __init__(  # type: ignore[misc]
        self, config: JobManagerConfig, generator: DeploymentHandle[Any], text_encoder: DeploymentHandle[Any]
    ) -> None:
        """Takes up the jobs that an earlier life left, in order. Raises StorageError for an unusable state folder."""
        self._config = config
        logger.addFilter(is_unexpected)
        self._lock = await StateLock.acquire(config.folders.state)
        try:
            self._files = await asyncio.to_thread(JobFiles, config.folders)
        except OSError as error:
            raise StorageError(
                f"the state folder {config.folders.state} cannot be written: {error.strerror}"
            ) from error
        self._jobs: dict[str, LiveJob] = {}  # all that have not ended
        self._ended_lately: deque[JobRow] = deque(maxlen=KEPT_ENDED)
        self._store: JobStore = await self._open_store()
        self._deliveries = Deliveries(self._store, config.callbacks)
        self._reader = text_encoder.options(method_name="read_lyrics")
        self._fleet = Fleet(self._store, config.models, config.build_id, generator, text_encoder)
        self._loras = LoraRegistry(self._store, lambda: self._fleet.spec)
        self._runner = Runner(
            self._store,
            self._files,
            self._fleet,
            generator,
            text_encoder,
            config.lease_terms,
            on_place=self._on_place,
            on_end=self._on_end,
        )
        self._waiting = WaitingJobs(config.songs_per_size)  # those with songs that nobody makes yet
        self._admission = Admission(
            self._store,
            self._files,
            config.queue_size,
            waiting=lambda: len(self._waiting),
            wait_s=lambda: self._runner.pace.wait_s(1),
            make_room=lambda with_output: self._retention.make_room(with_output),
            understands=self._fleet.understands,
            find_live=self._jobs.get,
            take_up=self._take_up,
        )
        self._retention = Retention(
            self._store, self._files, config.retention, live=self._jobs.keys, needed=self._needed_files
        )
        self._songs = SongReader(self._store, self._files, self._jobs.get, self._view)
        self._ended_logs: LruCache[str, EventLog] = LruCache(KEPT_LOGS)
        self._model_changes = 0  # that are under way: no job starts meanwhile
        self._tasks: set[asyncio.Task[Any]] = set()
        self._runs: set[asyncio.Task[None]] = set()  # those of them that see to the songs of a job
        await self._recover()
        self._spawn(self._store.hold())
        self._spawn(self._retention.run())
        self._spawn(self._deliveries.run())

    async def submit(self, submission: Submission | Resend) -> JobView:
        """Accept a job; it is on the disk when this returns. With the key of an earlier call, answers that call's job.

        Raises KeyConflictError, QueueFullError, SourceGoneError, SourceOfOtherModelError, StorageError, and
        JobNotFoundError for a Resend whose job is forgotten.
        """
        return self._view(await self._accept(submission))

    async def digest_of_key(self, key: str) -> str | None:
        """Return the request digest of the job that has this key; None if there is no such job. Raises StorageError."""
        row = await self._store.find_key(key)
        return None if row is None else row.request_digest

    async def submit_and_wait(
        self, submission: Submission | Resend, timeout_s: float, wants_audio: bool
    ) -> AsyncIterator[JobView | AudioFile]:
        """The job as it is accepted, then as it has ended or stands after `timeout_s`. Raises as `submit`.

        With `wants_audio`, a job that completed comes as the AudioFile of its first song.
        """
        job = await self._accept(submission)
        yield self._view(job)
        await job.wait(timeout_s)
        view = self._view(job)
        yield await self._songs.audio_file(view, 0) if wants_audio and view.outcome == "completed" else view

    async def status(self, request_id: str) -> JobView:
        """Raises JobNotFoundError."""
        return await self._songs.view(request_id)

    async def wait(self, request_id: str, timeout_s: float) -> JobView:
        """The job at its end, or after `timeout_s`, whichever is first. Raises JobNotFoundError."""
        job = self._jobs.get(request_id)
        if job is None:
            return await self._songs.view(request_id)
        await job.wait(timeout_s)
        return self._view(job)

    async def events(self, request_id: str, after: int, timeout_s: float) -> EventBatch:
        """What happened to a job since the event `after`, or what does next, or nothing for so long.

        Raises JobNotFoundError.
        """
        job = self._jobs.get(request_id)
        log = self._ended_logs.get(request_id) if job is None else job.events
        if log is None:
            view = await self._songs.view(request_id)
            if not view.ended:  # it is on the disk, but not taken up yet
                await asyncio.sleep(min(timeout_s, ARRIVAL_POLL_S))
                return EventBatch((), over=False)
            end = end_event(view)
            return EventBatch((end,) if end.event_id > after else (), over=True)
        return EventBatch(tuple(await log.wait_after(after, timeout_s)), log.ended)

    async def result(self, request_id: str, index: int = 0) -> AudioFile:
        """The audio of one song of a completed job.

        Raises JobNotFoundError, JobNotEndedError, JobFailedError, SongNotFoundError.
        """
        return await self._songs.audio_file(await self.status(request_id), index)

    async def listen(self, request_id: str, index: int, heard: int, edition: str | None, timeout_s: float) -> AudioPart:
        """What follows the `heard` bytes of a song's file, perhaps while it is made, and perhaps nothing for so long.

        `edition` is that of the bytes before. Raises JobNotFoundError, JobFailedError, SongNotFoundError,
        SongChangedError.
        """
        return await self._songs.listen(request_id, index, heard, edition, timeout_s)

    async def source_song(self, request_id: str, index: int) -> SourceSong:
        """A song that another may begin from. What is kept of it is kept anew for as long as a result.

        Raises JobNotFoundError, JobNotEndedError, JobFailedError, SongNotFoundError.
        """
        return await self._songs.source_song(request_id, index)

    async def upload(self, digest: str) -> ByteArray:
        """An audio file that was a source before. Raises SourceGoneError."""
        return await self._songs.upload(digest)

    async def cancel(self, request_id: str, client_left: bool = False) -> JobView:
        """End a job that waits or runs; a cancelled one stays as it is. Raises JobNotFoundError, JobEndedError.

        `client_left` says that the job ends because the client that waited for it is gone.
        """
        job = self._jobs.get(request_id)
        if job is not None:
            reason = CLIENT_LEFT if client_left else CANCELLED
            ending = Ending("cancelled", time.time(), error=reason.sentence, error_code=reason.code)
            if await self._to_its_end(self._runner.end(job, ending)):
                return self._view(job)
        view = await self._songs.view(request_id)
        if view.outcome != "cancelled":
            raise JobEndedError(view)
        return view

    async def queue_status(self) -> QueueStatus:
        counts = await self._store.counts()
        running = min(sum(job.row.status == "processing" for job in self._jobs.values()), counts["pending"])
        counts |= {"pending": counts["pending"] - running, "processing": running}
        waiting = len(self._waiting)
        return QueueStatus(
            queue_size=waiting,
            status_counts=counts,
            total_requests=sum(counts.values()),
            priority_counts=self._waiting.by_priority(),
            expected_wait_s=self._runner.pace.wait_s(waiting) if waiting else 0.0,
            replicas=len(self._fleet.status(waiting).replicas),
        )

    async def service_status(self) -> ServiceStatus:
        """From memory: the replicas report by themselves."""
        return self._fleet.status(len(self._waiting))

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What the scaling policy goes by; Serve asks again and again."""
        songs = sum(song.result is None for job in self._jobs.values() for song in job.songs)
        return {WANTED_SONGS: float(songs)}

    async def read_lyrics(self, lyrics: str, vocal_language: str | None) -> LyricReading:
        """How the current model reads lyrics. Raises ParameterError for an unknown language, ModelUnavailableError."""
        try:
            reading: LyricReading = await self._reader.remote(self._fleet.spec, lyrics, vocal_language)
        except (RayError, RayServeException) as error:
            cause = cause_of(error)
            if isinstance(cause, RequestError):
                raise cause from None
            raise ModelUnavailableError("the text encoder is starting or could not be loaded") from error
        return reading

    async def report(self, state: ReplicaState, calls: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Return those of a Generator's calls that nobody waits for. Called by every replica once a second."""
        self._fleet.note(state)
        self._start_jobs()
        if self._store.is_deposed:
            return ()  # they may be those of the JobManager that owns the store
        songs = (song for job in self._jobs.values() for song in job.songs)
        wanted = {song.call_id for song in songs if song.response is not None}
        return tuple(call_id for call_id in calls if call_id not in wanted)

    async def loras(self) -> tuple[LoraInfo, ...]:
        """The registered adapters, from memory."""
        return self._loras.listed()

    async def register_lora(self, name: str, path: str, root: str) -> LoraInfo:
        """Let requests name the adapter at `path`, under `root`. Raises LoraRefusedError, StorageError."""
        return await self._to_its_end(self._loras.register(name, path, root))

    async def remove_lora(self, name: str) -> None:
        """Let no request name it any more. Raises LoraNotFoundError, StorageError."""
        await self._to_its_end(self._loras.remove(name))

    async def initialize(self, name: str | None, options: Mapping[str, Any]) -> ServiceStatus:
        """Serve another model, or the same with other options, from the next job on. No job starts meanwhile.

        Options are `Models.choose`'s. Raises ModelUnavailableError; the old model stays then.
        """
        self._model_changes += 1
        try:
            await self._fleet.initialize(name, options)
        finally:
            self._model_changes -= 1
            self._start_jobs()
        return self._fleet.status(len(self._waiting))

    async def __del__(self) -> None:
        """Serve awaits this before the replica stops."""
        await self.stop()

    async def check_health(self) -> None:
        """Called by Serve every second; it replaces this JobManager when it raises.

        Raises StoreDeposedError for good once another JobManager owns the store or the state folder: the running songs
        are then left to that one.
        """
        if await self._is_deposed():
            for run in self._runs:
                run.cancel()
            raise StoreDeposedError("another job manager owns the jobs")

    async def _is_deposed(self) -> bool:
        if not self._store.is_deposed and await asyncio.to_thread(self._lock.is_lost):
            logger.error("the state folder was replaced, and another service may use the new one")
            self._store.depose()
        return self._store.is_deposed

    async def stop(self) -> None:
        """Let go of the Generators and the store. The next life runs what is left."""
        if not hasattr(self, "_tasks"):
            return  # it never came up
        for task in self._tasks:
            task.cancel()  # a run that is cancelled aborts its Generator's call
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._store.close()
        self._lock.release()

    async def _accept(self, submission: Submission | Resend) -> LiveJob:
        """Return the job of a submission. Raises as `submit`."""
        return await self._to_its_end(self._accept_if_owner(submission))

    async def _accept_if_owner(self, submission: Submission | Resend) -> LiveJob:
        if await self._is_deposed():
            raise StoreDeposedError("another job manager owns the jobs")
        return await self._admission.accept(submission)

    async def _recover(self) -> None:
        await self._fleet.restore()
        await self._loras.restore(self._config.loras)
        await self._deliveries.restore()
        rows = []
        for row in await self._store.unfinished():
            if row.ended:  # it cannot be read
                end = Ending("failed", time.time(), error=row.error, error_code=row.error_code)
                await self._store.finish(row.request_id, end)
            else:
                rows.append(row)
        for row in rows:
            self._enqueue(dataclasses.replace(row, status="pending", started_at=None))
        if rows:
            logger.info("%d jobs of an earlier run wait again", len(rows))
        self._start_jobs()

    def _take_up(self, row: JobRow) -> LiveJob:
        job = self._jobs.get(row.request_id) or self._enqueue(row)
        self._tell_positions()
        self._start_jobs()
        return job

    def _enqueue(self, row: JobRow) -> LiveJob:
        job = self._jobs[row.request_id] = LiveJob(row)
        self._waiting.add(row.request_id, job.duration_s, len(job.songs), row.priority, row.created_at)
        return job

    def _start_jobs(self) -> None:
        """Start every song that may: as many as the replicas there are can take, so that the others keep their order.

        Without any replica, those that one could take ask Serve for it.
        """
        replicas = len(self._fleet.status(len(self._waiting)).replicas)
        self._waiting.max_in_flight_per_size = self._config.songs_per_size * max(1, replicas)
        moved = False
        while not self._model_changes and (request_id := self._waiting.start_next()) is not None:
            moved, job = True, self._jobs[request_id]
            if not job.running:
                job.running = True
                run = self._spawn(self._runner.run(job))
                self._runs.add(run)
                run.add_done_callback(self._runs.discard)
            job.grant_place()
        if moved:
            self._tell_positions()

    def _tell_positions(self) -> None:
        """Tell those who follow jobs that wait."""
        for request_id, position in self._waiting.positions():
            wait_s = self._runner.pace.wait_s(position) if position else 0.0
            told = {"position": position, "expected_wait_s": round(wait_s, 1)}
            self._jobs[request_id].events.add("queued", told)

    def _on_place(self, job: LiveJob) -> None:
        job.places -= 1
        self._waiting.end(job.duration_s)
        self._start_jobs()

    async def _open_store(self) -> JobStore:
        if self._config.redis_url is None:
            return await SqliteStore.open(self._config.folders.store)
        return await RedisStore.open(self._config.redis_url, self._known_rows, self._config.build_id)

    def _known_rows(self) -> list[JobRow]:
        """What the store is filled with if it loses its last changes."""
        ended = [self._deliveries.as_it_stands(row) for row in self._ended_lately]
        return [*ended, *(job.row for job in self._jobs.values())]

    def _needed_files(self) -> set[str]:
        """What jobs that have not ended begin from, and those that are about to be accepted."""
        return {job.row.source for job in self._jobs.values() if job.row.source} | self._admission.arriving_sources()

    def _on_end(self, job: LiveJob) -> None:
        self._ended_lately.append(job.row)
        self._deliveries.add(job.row)
        self._retention.note_end()
        end = end_event(view_of(job.row))
        job.events.add(end.kind, end.data)
        self._ended_logs.put(job.row.request_id, job.events)
        self._jobs.pop(job.row.request_id, None)
        self._waiting.discard(job.row.request_id)

    async def _to_its_end(self, work: Coroutine[Any, Any, T]) -> T:
        """What is written and what is remembered must agree, even if the caller leaves in between."""
        return await asyncio.shield(self._spawn(work))

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run in the background, in no request's context: Serve cancels the calls that a request made with it."""
        task = asyncio.create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _view(self, job: LiveJob) -> JobView:
        if job.row.ended:
            return view_of(job.row)
        if job.row.status == "processing":
            return dataclasses.replace(view_of(job.row, progress=job.progress), remaining_s=job.slowest.remaining_s)
        position = self._waiting.position(job.row.request_id)
        view = view_of(job.row, position, job.progress)
        return dataclasses.replace(view, expected_wait_s=self._runner.pace.wait_s(position) if position else 0.0)
