"""Who waits and who may run: songs of each size in a line of their own. Pure."""

from dataclasses import dataclass

SMALLEST_SIZE_S = 15.0


def size_of(duration_s: float) -> float:
    """The shortest of 15, 30, 60, 120, 240, ... seconds that covers a song of this duration."""
    size_s = SMALLEST_SIZE_S
    while size_s < duration_s:
        size_s *= 2
    return size_s


@dataclass
class _Waiting:
    """A job of which some songs, or all, wait."""

    size_s: float
    songs: int  # that wait
    begun: bool = False  # one of its songs runs, or has run


class WaitingJobs:
    """The jobs whose songs wait for a place, in order, and how many songs of each size run.

    A song may start as long as fewer than `max_in_flight_per_size` of its own size run: long songs that fill the server
    never hold up a short one, nor short ones a long one. Within a size the first to come is the first to start.
    """

    def __init__(self, max_in_flight_per_size: int) -> None:
        self._max_in_flight_per_size = max_in_flight_per_size
        self._jobs: dict[str, _Waiting] = {}  # by id, in order of arrival
        self._running: dict[float, int] = {}  # how many songs of each size

    def __len__(self) -> int:
        """How many jobs have not begun."""
        return sum(not job.begun for job in self._jobs.values())

    def add(self, request_id: str, duration_s: float, songs: int) -> None:
        """A job waits, behind all others, with so many songs of this duration."""
        self._jobs[request_id] = _Waiting(size_of(duration_s), songs)

    def discard(self, request_id: str) -> None:
        """None of a job's songs waits any more."""
        self._jobs.pop(request_id, None)

    def start_next(self) -> str | None:
        """The job whose song is the first that may start. It runs from now on, until `end` says that it does not."""
        for request_id, job in self._jobs.items():
            if self._running.get(job.size_s, 0) < self._max_in_flight_per_size:
                self._running[job.size_s] = self._running.get(job.size_s, 0) + 1
                job.begun = True
                job.songs -= 1
                if job.songs == 0:
                    del self._jobs[request_id]
                return request_id
        return None

    def end(self, duration_s: float) -> None:
        """A song of this duration, whose job `start_next` had named, runs no more."""
        self._running[size_of(duration_s)] -= 1

    def position(self, request_id: str) -> int:
        """How many jobs came before this one and have not begun; 0 for one that does not wait."""
        before = 0
        for waiting_id, job in self._jobs.items():
            if waiting_id == request_id:
                return before
            before += not job.begun
        return 0
