"""What every route works with: the settings, the JobManager behind them, and what is known of its health."""

import asyncio
import contextvars
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from anyio import CapacityLimiter
from fastapi import Request

from deployments.messages import (
    AudioFile,
    AudioPart,
    ByteArray,
    EventBatch,
    JobView,
    LoraInfo,
    LyricReading,
    QueueStatus,
    Resend,
    ServiceError,
    ServiceStatus,
    SourceSong,
    Submission,
)
from serve_app.bodies import BodyLimits
from serve_app.bounds import BodyRooms, Places
from serve_app.errors import BackendError
from serve_app.settings import Settings

logger = logging.getLogger("ray.serve.acestep")  # Ray Serve's handlers write it

T = TypeVar("T")

MIB = 2**20

AUDIO_CHECKS_AT_ONCE = 4  # uploads are decoded once to be checked: more at a time would hold up the event loop


class JobManagerClient(Protocol):
    """The JobManager as the routes see it.

    Every method raises its ServiceErrors as themselves, BackendUnavailableError when the JobManager cannot be reached
    and BackendFailedError when it failed in another way.
    """

    async def submit(self, submission: Submission | Resend) -> JobView:
        """Accept a job, or find that of a Resend.

        Raises KeyConflictError, QueueFullError, SourceGoneError, StorageError, and JobNotFoundError for a Resend.
        """

    async def digest_of_key(self, key: str) -> str | None:
        """The request digest of the job that has this key; None if there is no such job."""

    def submit_and_wait(
        self, submission: Submission | Resend, timeout_s: float, wants_audio: bool
    ) -> AsyncIterator[JobView | AudioFile]:
        """The job as it is accepted, then as it has ended or stands after `timeout_s`. Raises as `submit`.

        With `wants_audio`, a job that completed comes as the AudioFile of its first song.
        """

    async def status(self, request_id: str) -> JobView:
        """Raises JobNotFoundError."""

    async def result(self, request_id: str, index: int) -> AudioFile:
        """The audio of one song. Raises JobNotFoundError, JobNotEndedError, JobFailedError, SongNotFoundError."""

    async def listen(self, request_id: str, index: int, heard: int, edition: str | None, wait_s: float) -> AudioPart:
        """What follows the `heard` bytes of a song's file, of this edition, or nothing after `wait_s`.

        Raises JobNotFoundError, JobFailedError, SongNotFoundError, SongChangedError.
        """

    async def source_song(self, request_id: str, index: int) -> SourceSong:
        """A song to begin from. Raises JobNotFoundError, JobNotEndedError, JobFailedError, SongNotFoundError."""

    async def upload(self, digest: str) -> ByteArray:
        """An audio file that was a source before. Raises SourceGoneError."""

    async def events(self, request_id: str, after: int, wait_s: float) -> EventBatch:
        """What happened since the event `after`, or nothing after `wait_s`. Raises JobNotFoundError."""

    async def cancel(self, request_id: str, client_left: bool = False) -> JobView:
        """End a job, for its owner or because its client is gone. Raises JobNotFoundError, JobEndedError."""

    async def read_lyrics(self, lyrics: str, vocal_language: str | None) -> LyricReading:
        """How the current model reads lyrics. Raises ParameterError, ModelUnavailableError."""

    async def queue_status(self) -> QueueStatus: ...

    async def service_status(self) -> ServiceStatus: ...

    async def loras(self) -> tuple[LoraInfo, ...]:
        """The registered adapters."""

    async def register_lora(self, name: str, path: str, root: str) -> LoraInfo:
        """Check and name the adapter at an absolute path under `root`. Raises LoraRefusedError, StorageError."""

    async def remove_lora(self, name: str) -> None:
        """Raises LoraNotFoundError, StorageError."""

    async def initialize(self, name: str | None, options: dict[str, bool]) -> ServiceStatus:
        """Run the named model from now on; None is the current one. Raises ModelUnavailableError."""


class StatusWatch:
    """Asks for the service's status in the background, so that /health never waits for it."""

    PERIOD_S = 1.0
    TIMEOUT_S = 5.0  # of one question
    STALE_S = 15.0  # an answer older than this says nothing any more

    def __init__(self, job_manager: JobManagerClient) -> None:
        self._job_manager = job_manager
        self._known: tuple[float, ServiceStatus] | None = None
        self._answered = asyncio.Event()

    async def run(self) -> None:
        """Ask once a second, for ever."""
        reachable = True
        while True:
            try:
                self.note(await asyncio.wait_for(self._job_manager.service_status(), self.TIMEOUT_S))
                reachable = True
            except (ServiceError, BackendError, TimeoutError) as error:
                if reachable:
                    logger.warning("the job manager does not answer: %s", type(error).__name__)
                reachable = False
            await asyncio.sleep(self.PERIOD_S)

    def note(self, status: ServiceStatus) -> None:
        """Remember an answer that came another way."""
        self._known = (time.monotonic(), status)
        self._answered.set()

    async def latest(self, wait_s: float) -> ServiceStatus | None:
        """The last answer; the first is waited for, at most `wait_s`. None when there is none, or only a stale one."""
        if self._known is None:
            try:
                await asyncio.wait_for(self._answered.wait(), wait_s)
            except TimeoutError:
                return None
        assert self._known is not None
        at, status = self._known
        return status if time.monotonic() - at < self.STALE_S else None


@dataclass
class Service:
    """Shared by all requests of one ingress replica."""

    settings: Settings
    job_manager: JobManagerClient
    watch: StatusWatch
    decoding: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(AUDIO_CHECKS_AT_ONCE))
    bodies: BodyRooms = field(init=False)
    followers: Places = field(init=False)  # of jobs
    waiting: Places = field(init=False)  # for songs
    readers: Places = field(init=False)  # of songs
    _running: set[asyncio.Task[Any]] = field(default_factory=set)

    def __post_init__(self) -> None:
        limits = self.settings.limits
        self.bodies = BodyRooms(limits.bodies, limits.bodies_mb * MIB)
        self.followers = Places(limits.followers, "too_many_followers", "clients follow jobs")
        self.waiting = Places(limits.waiting, "too_many_waiting", "requests wait for their songs")
        self.readers = Places(limits.readers, "too_many_readers", "songs are being sent")

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `work` to its end even if the request that asked for it is cancelled.

        The empty context keeps Ray Serve from counting its calls as the request's own, which it cancels with it.
        """
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task


def body_limits(settings: Settings, *, with_audio: bool = False) -> BodyLimits:
    """The bounds on a body, where audio may be in it and where not."""
    limits = settings.limits
    audio_mb = max(limits.upload_mb, limits.base64_mb) if with_audio else 0
    return BodyLimits(limits.json_mb * MIB, audio_mb * MIB, limits.body_timeout_s, limits.body_bytes_per_s)


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service
