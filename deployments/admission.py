"""What comes in: the queue's bound, a job's id, and one job for all calls that carry the same key."""

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from deployments.live_jobs import LiveJob
from deployments.messages import (
    EarlierSong,
    JobNotFoundError,
    KeyConflictError,
    QueueFullError,
    Resend,
    Source,
    SourceGoneError,
    SourceOfOtherModelError,
    StorageError,
    Submission,
)
from deployments.results import JobFiles, source_name
from deployments.store.protocol import Callback, JobRow, JobStore


class Admission:
    """Takes submissions in, so that each is on the disk before anybody hears that it was accepted.

    `make_room` answers as Retention's, `understands` as Fleet's. `find_live` answers the job of an id that has not
    ended; `take_up` is given every new row, once, when it is durable.
    """

    def __init__(
        self,
        store: JobStore,
        files: JobFiles,
        queue_size: int,
        waiting: Callable[[], int],
        wait_s: Callable[[], float],
        make_room: Callable[[bool], Awaitable[bool]],
        understands: Callable[[str, str], bool],
        find_live: Callable[[str], LiveJob | None],
        take_up: Callable[[JobRow], LiveJob],
    ) -> None:
        self._store = store
        self._files = files
        self._queue_size = queue_size
        self._waiting = waiting
        self._wait_s = wait_s
        self._make_room = make_room
        self._understands = understands
        self._find_live = find_live
        self._take_up = take_up
        self._entering = 0  # submissions that are being accepted
        self._arriving: dict[str, asyncio.Event] = {}  # by id: jobs that are being written or taken up again
        self._sources: Counter[str] = Counter()  # of the submissions that are being accepted

    def arriving_sources(self) -> set[str]:
        """Return the files that submissions begin from which are being accepted."""
        return {*self._sources}

    async def accept(self, submission: Submission | Resend) -> LiveJob:
        """Return the job of a submission: a new one, or the one that an earlier call with the same key made.

        Raises KeyConflictError, QueueFullError, SourceGoneError, SourceOfOtherModelError, StorageError, and
        JobNotFoundError for a Resend whose job is forgotten.
        """
        if isinstance(submission, Resend):
            known = await self._known(submission)
            if known is None:
                raise JobNotFoundError(submission.key)
            return known
        waiting = self._waiting() + self._entering
        if waiting >= self._queue_size:
            known = await self._known(submission)
            if known is None:
                raise QueueFullError(waiting, self._queue_size, self._wait_s())
            return known
        name = None if submission.source is None else source_name(submission.source)
        self._entering += 1
        if name is not None:
            self._sources[name] += 1
        try:
            if not await self._has_room(submission.save_file):
                known = await self._known(submission)
                if known is None:
                    raise StorageError("the disk is almost full")
                return known
            source = None if submission.source is None else await self._keep_source(submission.source)
            return await self._add(submission, source)
        finally:
            self._entering -= 1
            if name is not None:
                self._sources[name] -= 1
                self._sources = +self._sources

    async def _has_room(self, with_output: bool) -> bool:
        try:
            return await self._make_room(with_output)
        except OSError as error:
            raise StorageError(f"old results cannot be removed: {error.strerror}") from error

    async def _add(self, submission: Submission, source: str | None) -> LiveJob:
        request_id = submission.request_id
        while True:
            if self._find_live(request_id) is not None or request_id in self._arriving:
                request_id = uuid.uuid4().hex
            with self._arrival(request_id):
                row = _row_of(submission, request_id, source)
                if await self._store.add(row):
                    return self._take_up(row)
            known = await self._known(submission)
            if known is not None:
                return known
            request_id = uuid.uuid4().hex  # a job that has ended has this id

    async def _known(self, submission: Submission | Resend) -> LiveJob | None:
        """Return the job that has this key already. Raises KeyConflictError if its request was another one."""
        while (row := await self._store.find_key(submission.key)) is not None:
            if row.request_digest != submission.request_digest:
                raise KeyConflictError(submission.key)
            if row.ended:
                return LiveJob(row)
            live = self._find_live(row.request_id)
            if live is not None:
                return live
            arriving = self._arriving.get(row.request_id)
            if arriving is not None:
                await arriving.wait()  # another call adds it or takes it up
                continue
            with self._arrival(row.request_id):
                # Either the job has ended since its row was read, or the call that added it never got the store's
                # answer. Only the store knows, and no other call can take the job up until it has answered.
                if await self._store.set_attempts(row.request_id, row.attempts):
                    return self._take_up(row)
        return None

    @contextmanager
    def _arrival(self, request_id: str) -> Iterator[None]:
        """Make other calls that find this job wait until it is taken up or turns out not to be."""
        self._arriving[request_id] = decided = asyncio.Event()
        try:
            yield
        finally:
            del self._arriving[request_id]
            decided.set()

    async def _keep_source(self, source: Source) -> str:
        try:
            name = await asyncio.to_thread(self._files.keep_source, source)
        except OSError as error:
            raise StorageError(f"the uploaded audio cannot be kept: {error.strerror}") from error
        if isinstance(source, EarlierSong):
            await self._check_latents(source, name)
        return name

    async def _check_latents(self, source: EarlierSong, name: str) -> None:
        """Raises SourceGoneError, SourceOfOtherModelError."""
        try:
            latent_space = await asyncio.to_thread(self._files.latent_space, name)
        except (OSError, SafetensorError):
            raise SourceGoneError(f"song {source.index} of {source.request_id}") from None
        row = None if latent_space else await self._store.get(source.request_id)
        made_by = row.results[source.index].model if row is not None and row.results else ""
        if not self._understands(latent_space, made_by):
            raise SourceOfOtherModelError(f"song {source.index} of {source.request_id}")


def _row_of(submission: Submission, request_id: str, source: str | None) -> JobRow:
    return JobRow(
        request_id=request_id,
        status="pending",
        created_at=time.time(),
        songs=submission.songs,
        audio_format=submission.audio_format,
        request_json=submission.request_json,
        key=submission.key,
        request_digest=submission.request_digest,
        save_file=submission.save_file,
        priority=submission.priority,
        source=source,
        callback=None if submission.callback_url is None else Callback(submission.callback_url),
    )
