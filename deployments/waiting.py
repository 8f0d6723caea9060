"""Who waits and who may run: songs of each size in a line of their own. Pure."""

from bisect import insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

SMALLEST_SIZE_S = 15.0
# A job may overtake those of one priority less that came up to so much earlier, and never any other: nobody starves.
AGEING_S = 60.0


def size_of(duration_s: float) -> float:
    """The shortest of 15, 30, 60, 120, 240, ... seconds that covers a song of this duration."""
    size_s = SMALLEST_SIZE_S
    while size_s < duration_s:
        size_s *= 2
    return size_s


@dataclass
class _Waiting:
    """A job of which some songs, or all, wait. The least `rank` is the first; of equals, who came first."""

    request_id: str
    priority: int
    rank: float
    size_s: float
    songs: int  # that wait
    begun: bool = False  # one of its songs runs, or has run


class WaitingJobs:
    """The jobs whose songs wait for a place, in order, and how many songs of each size run.

    A song may start as long as fewer than `max_in_flight_per_size` of its own size run: long songs that fill the server
    never hold up a short one, nor short ones a long one. Within a size and a priority the first to come is the first to
    start; a priority more is worth `AGEING_S` of waiting.
    """

    def __init__(self, max_in_flight_per_size: int) -> None:
        self.max_in_flight_per_size = max_in_flight_per_size
        self._jobs: dict[str, _Waiting] = {}  # by id
        self._line: list[_Waiting] = []  # the same, in order
        self._running: dict[float, int] = {}  # how many songs of each size

    def __len__(self) -> int:
        """How many jobs have not begun."""
        return sum(not job.begun for job in self._jobs.values())

    def add(self, request_id: str, duration_s: float, songs: int, priority: int = 5, arrived_at_s: float = 0.0) -> None:
        """A job waits with so many songs of this duration. A higher `priority` is more urgent."""
        job = _Waiting(request_id, priority, arrived_at_s - priority * AGEING_S, size_of(duration_s), songs)
        self._jobs[request_id] = job
        insort(self._line, job, key=lambda one: one.rank)

    def discard(self, request_id: str) -> None:
        """None of a job's songs waits any more."""
        job = self._jobs.pop(request_id, None)
        if job is not None:
            self._line = [one for one in self._line if one is not job]

    def start_next(self) -> str | None:
        """The job whose song is the first that may start. It runs from now on, until `end` says that it does not."""
        for job in self._line:
            if self._running.get(job.size_s, 0) < self.max_in_flight_per_size:
                self._running[job.size_s] = self._running.get(job.size_s, 0) + 1
                job.begun = True
                job.songs -= 1
                if job.songs == 0:
                    self.discard(job.request_id)
                return job.request_id
        return None

    def end(self, duration_s: float) -> None:
        """A song of this duration, whose job `start_next` had named, runs no more."""
        self._running[size_of(duration_s)] -= 1

    def position(self, request_id: str) -> int:
        """How many jobs are before this one and have not begun; 0 for one that does not wait."""
        before = 0
        for job in self._line:
            if job.request_id == request_id:
                return before
            before += not job.begun
        return 0

    def positions(self) -> Iterator[tuple[str, int]]:
        """The jobs that have not begun, each with its position."""
        yield from ((job.request_id, place) for place, job in enumerate(job for job in self._line if not job.begun))

    def by_priority(self) -> dict[int, int]:
        """How many jobs of each priority have not begun."""
        return dict(sorted(Counter(job.priority for job in self._line if not job.begun).items()))
