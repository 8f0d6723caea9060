"""What is kept of songs, or is being made of them, for those who ask: audio, sources of other songs."""

import asyncio
import dataclasses
from collections.abc import Callable

from deployments.failures import EXPIRED
from deployments.growing_audio import READ_BYTES
from deployments.live_jobs import LiveJob
from deployments.messages import (
    AudioFile,
    AudioPart,
    ByteArray,
    EarlierSong,
    JobFailedError,
    JobNotEndedError,
    JobNotFoundError,
    JobView,
    SongChangedError,
    SongNotFoundError,
    SourceGoneError,
    SourceSong,
)
from deployments.results import JobFiles, source_name
from deployments.store.protocol import JobRow, JobStore
from deployments.views import view_of


class SongReader:
    """`find_live` answers the job of an id that has not ended, `view` how it stands."""

    def __init__(
        self,
        store: JobStore,
        files: JobFiles,
        find_live: Callable[[str], LiveJob | None],
        view: Callable[[LiveJob], JobView],
    ) -> None:
        self._store = store
        self._files = files
        self._find_live = find_live
        self._view = view

    async def view(self, request_id: str) -> JobView:
        """How a job stands, whether or not it has ended. Raises JobNotFoundError."""
        job = self._find_live(request_id)
        return self._view(job) if job is not None else view_of(await self._row(request_id))

    async def audio_file(self, view: JobView, index: int) -> AudioFile:
        """Raises JobNotEndedError, JobFailedError, SongNotFoundError."""
        return AudioFile(view, await self._read(view, index), index)

    async def listen(self, request_id: str, index: int, heard: int, edition: str | None, timeout_s: float) -> AudioPart:
        """As JobManager.listen."""
        job = self._find_live(request_id)
        if job is not None:
            _check_index(job.row, index)
            audio = job.songs[index].audio
            await audio.wait_beyond(heard, timeout_s)
            if audio.closed and (job.is_made or not audio.complete) and not audio.has_beyond(heard):
                await job.wait(timeout_s)  # who has heard the last song to its end finds the job ended
            if not job.row.ended:
                _check_edition(audio.edition, heard, edition)
                last = audio.complete and not audio.has_beyond(heard) and not job.is_made
                return AudioPart(self._view(job), audio.read(heard), audio.edition, last)
        view = await self.view(request_id)
        part = await self._read(view, index, heard, READ_BYTES)
        result = view.results[index]
        _check_edition(result.edition, heard, edition)
        return AudioPart(view, part, result.edition, heard + part.size >= result.audio_bytes)

    async def source_song(self, request_id: str, index: int) -> SourceSong:
        """As JobManager.source_song."""
        live = self._find_live(request_id)
        if live is not None:
            raise JobNotEndedError(self._view(live))
        row = await self._row(request_id)
        if not row.ended:  # it is on the disk, but not taken up yet
            raise JobNotEndedError(view_of(row))
        if not row.results:
            raise JobFailedError(view_of(row))
        _check_index(row, index)
        is_kept = await asyncio.to_thread(self._files.use_source, source_name(EarlierSong(request_id, index)))
        return SourceSong(row.songs[index], row.results[index].duration_s, is_kept)

    async def upload(self, digest: str) -> ByteArray:
        """As JobManager.upload."""
        try:
            return await asyncio.to_thread(self._files.read_upload, digest)
        except FileNotFoundError:
            raise SourceGoneError(digest) from None

    async def _read(self, view: JobView, index: int, start: int = 0, most: int = -1) -> ByteArray:
        """Of a song's file. Raises JobNotEndedError, JobFailedError, SongNotFoundError."""
        _check_index(view, index)
        if not view.ended:
            raise JobNotEndedError(view)
        if view.outcome != "completed":
            raise JobFailedError(view)
        read, result = self._files.read_audio, view.results[index]
        try:
            return await asyncio.to_thread(read, view.request_id, index, view.audio_format, start, most, result)
        except (FileNotFoundError, PermissionError):  # a saved file may be the same one, and its owner may close it
            gone = dataclasses.replace(
                view, outcome="expired", error=EXPIRED.sentence, error_code=EXPIRED.code, results=()
            )
            raise JobFailedError(gone) from None

    async def _row(self, request_id: str) -> JobRow:
        row = await self._store.get(request_id)
        if row is None:
            raise JobNotFoundError(request_id)
        return row


def _check_index(job: JobView | JobRow, index: int) -> None:
    if not 0 <= index < len(job.songs):
        raise SongNotFoundError(index, len(job.songs))


def _check_edition(found: str, heard: int, edition: str | None) -> None:
    if heard and found != edition:
        raise SongChangedError
