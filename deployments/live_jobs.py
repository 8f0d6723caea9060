"""Jobs that have not ended, or have just now: what is known of them in memory only."""

import asyncio
import time
from contextlib import suppress
from typing import Any

from ray.serve.handle import DeploymentResponseGenerator

from acestep_engine.params import GenerationParams, Progress
from deployments.events import EventLog
from deployments.failures import Failure
from deployments.growing_audio import GrowingAudio
from deployments.messages import SongResult
from deployments.store.protocol import JobRow

STAGES = ("encoding", "diffusion", "decoding")


class LiveSong:
    """One song of a job."""

    def __init__(self, index: int, params: GenerationParams, attempts: int) -> None:
        self.index = index
        self.params = params
        self.attempts = attempts  # in all lives of the job
        self.progress: Progress | None = None
        self._first_step: tuple[float, int] | None = None  # when diffusion was first heard of, and how far it was
        self.response: DeploymentResponseGenerator[Any] | None = None  # the Generator's call, while there is one
        self.call_id = ""  # of that call
        self.audio = GrowingAudio()
        self.result: SongResult | None = None  # once its files are on the disk

    @property
    def remaining_s(self) -> float | None:
        """Of diffusion, judged by the steps so far; None before the first, and after the last."""
        progress = self.progress
        if progress is None or self._first_step is None or progress.stage != "diffusion":
            return None
        began_at, first = self._first_step
        if progress.step == first:
            return None
        return (time.monotonic() - began_at) / (progress.step - first) * (progress.steps - progress.step)

    def note(self, progress: Progress | None) -> None:
        """It is so far; None is back at the start."""
        self.progress = progress
        if progress is None or progress.stage == "encoding":
            self._first_step = None
        elif self._first_step is None:
            self._first_step = time.monotonic(), progress.step

    def abort(self) -> None:
        """Stop the Generator's call, if there is one, within one forward."""
        if self.response is not None:
            self.response.cancel()
            self.response = None


class LiveJob:
    """That a job runs, and how far it is, is kept here only."""

    def __init__(self, row: JobRow) -> None:
        self.row = row
        self.songs = [LiveSong(index, params, row.attempts) for index, params in enumerate(row.songs)]
        self.failure: Failure | None = None  # of one of its songs, which ends the others
        self.events = EventLog()
        self.ending = asyncio.Lock()  # held while its end is written
        self.ended = asyncio.Event()
        if row.ended:
            self.ended.set()
        self.running = False  # somebody sees to it that its songs are made
        self.places = 0  # songs that may run and have not given back their place
        self._places = asyncio.Semaphore(0)

    def is_over(self) -> bool:
        """Whether it ended, or is about to. A call, because anybody may end it during any await."""
        return self.row.ended or self.failure is not None

    @property
    def is_made(self) -> bool:
        """Whether the files of all its songs are on the disk."""
        return all(song.result is not None for song in self.songs)

    @property
    def duration_s(self) -> float:
        """Of each of its songs, for which they were asked."""
        return self.row.songs[0].duration_s

    @property
    def slowest(self) -> LiveSong:
        """The song that is least far of those that are not there yet."""
        left = [song for song in self.songs if song.result is None]
        return min(left or self.songs, key=lambda song: _how_far(song.progress))

    @property
    def progress(self) -> Progress | None:
        """That of the song that is least far; None as long as none has begun."""
        if all(song.progress is None for song in self.songs):
            return None
        return self.slowest.progress or Progress("encoding")

    def tell_progress(self) -> None:
        """Tell those who follow how far it is."""
        progress = self.progress
        if progress is not None and not self.is_over():
            remaining_s = self.slowest.remaining_s
            told: dict[str, float] = {"step": progress.step, "steps": progress.steps}
            told |= {} if remaining_s is None else {"remaining_s": round(remaining_s, 1)}
            self.events.add(progress.stage, {} if progress.stage == "encoding" else told)

    def grant_place(self) -> None:
        """One song more may run."""
        self.places += 1
        self._places.release()

    async def take_place(self) -> None:
        """Until the caller's song may run, or the job is over."""
        await self._places.acquire()

    async def wait(self, timeout_s: float) -> None:
        """Until it has ended, at most so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self.ended.wait()

    def fail(self, failure: Failure) -> None:
        """End all its songs for this reason, unless there was another one before."""
        if not self.is_over():
            self.failure = failure
            self.abort()

    def abort(self) -> None:
        """Stop all its songs. It must be over."""
        for song in self.songs:
            song.abort()
            song.audio.close(complete=False)
            self._places.release()  # none waits any more


def _how_far(progress: Progress | None) -> tuple[int, float]:
    if progress is None:
        return -1, 0.0
    return STAGES.index(progress.stage), progress.step / max(1, progress.steps)
