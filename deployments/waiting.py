"""Who waits and who may run: songs of each size in a line of their own. Pure."""

SMALLEST_SIZE_S = 15.0


def size_of(duration_s: float) -> float:
    """The shortest of 15, 30, 60, 120, 240, ... seconds that covers a song of this duration."""
    size_s = SMALLEST_SIZE_S
    while size_s < duration_s:
        size_s *= 2
    return size_s


class WaitingJobs:
    """The ids of the jobs that wait, in order, and how many of each size run.

    A job may start as long as fewer than `max_in_flight_per_size` of its own size run: long songs that fill the server
    never hold up a short one, nor short ones a long one. Within a size the first to come is the first to start.
    """

    def __init__(self, max_in_flight_per_size: int) -> None:
        self._max_in_flight_per_size = max_in_flight_per_size
        self._waiting: dict[str, float] = {}  # id to size, in order of arrival
        self._running: dict[float, int] = {}  # how many of each size

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, request_id: str, duration_s: float) -> None:
        """A job waits, behind all others."""
        self._waiting[request_id] = size_of(duration_s)

    def discard(self, request_id: str) -> None:
        """A job waits no more, if it did."""
        self._waiting.pop(request_id, None)

    def start_next(self) -> str | None:
        """The first that may start. It runs from now on, until `end` says that it does not."""
        for request_id, size_s in self._waiting.items():
            if self._running.get(size_s, 0) < self._max_in_flight_per_size:
                del self._waiting[request_id]
                self._running[size_s] = self._running.get(size_s, 0) + 1
                return request_id
        return None

    def end(self, duration_s: float) -> None:
        """A job of this duration, which `start_next` had named, runs no more."""
        self._running[size_of(duration_s)] -= 1

    def position(self, request_id: str) -> int:
        """How many of those that wait came before this one; 0 for one that does not wait."""
        return next((i for i, waiting in enumerate(self._waiting) if waiting == request_id), 0)
