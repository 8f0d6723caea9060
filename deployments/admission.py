"""What comes in: the queue's bound, a job's id, and one job for all calls that carry the same key."""

import asyncio
import time
import uuid
from collections.abc import Callable

from deployments.live_jobs import LiveJob
from deployments.messages import KeyConflictError, QueueFullError, Source, StorageError, Submission
from deployments.results import JobFiles, source_name
from deployments.store.protocol import Callback, JobRow, JobStore


class Admission:
    """Takes submissions in, so that each is on the disk before anybody hears that it was accepted.

    `find_live` answers the job of an id that has not ended; `take_up` is given every new row, once, when it is durable.
    """

    def __init__(
        self,
        store: JobStore,
        files: JobFiles,
        queue_size: int,
        waiting: Callable[[], int],
        wait_s: Callable[[], float],
        find_live: Callable[[str], LiveJob | None],
        take_up: Callable[[JobRow], LiveJob],
    ) -> None:
        self._store = store
        self._files = files
        self._queue_size = queue_size
        self._waiting = waiting
        self._wait_s = wait_s
        self._find_live = find_live
        self._take_up = take_up
        self._arriving: dict[str, asyncio.Event] = {}  # by id: submissions that are being written
        self._sources: dict[str, str] = {}  # of those, by id

    def arriving_sources(self) -> set[str]:
        """The files that submissions begin from which are being written."""
        return {*self._sources.values()}

    async def accept(self, submission: Submission) -> LiveJob:
        """The job of a submission: a new one, or the one that an earlier call with the same key made.

        Raises KeyConflictError, QueueFullError, SourceGoneError, StorageError.
        """
        waiting = self._waiting() + len(self._arriving)
        request_id = submission.request_id
        if waiting >= self._queue_size:
            known = await self._known(submission, request_id)
            if known is None:
                raise QueueFullError(waiting, self._queue_size, self._wait_s())
            return known
        if self._find_live(request_id) is not None or request_id in self._arriving:
            request_id = uuid.uuid4().hex
        self._arriving[request_id] = taken_up = asyncio.Event()
        if submission.source is not None:
            self._sources[request_id] = source_name(submission.source)
        try:
            source = None if submission.source is None else await self._keep_source(submission.source)
            row = _row_of(submission, request_id, source)
            while not await self._store.add(row):
                known = await self._known(submission, request_id)
                if known is not None:
                    return known
                row = _row_of(submission, uuid.uuid4().hex, source)  # a job that has ended has this id
            return self._take_up(row)
        finally:
            del self._arriving[request_id]
            self._sources.pop(request_id, None)
            taken_up.set()

    async def _known(self, submission: Submission, request_id: str) -> LiveJob | None:
        """The job that has this key already. Raises KeyConflictError if it was asked for in other words."""
        row = await self._store.find_key(submission.key)
        if row is None:
            return None
        if row.request_digest != submission.request_digest:
            raise KeyConflictError(submission.key)
        if row.ended:
            return LiveJob(row)
        if row.request_id != request_id and (arriving := self._arriving.get(row.request_id)) is not None:
            await arriving.wait()  # the call that adds it has not heard yet that it did
        return self._find_live(row.request_id) or self._take_up(row)  # or never will

    async def _keep_source(self, source: Source) -> str:
        try:
            return await asyncio.to_thread(self._files.keep_source, source)
        except OSError as error:
            raise StorageError(f"the uploaded audio cannot be kept: {error.strerror}") from error


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
