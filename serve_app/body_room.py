"""How many bodies are read at a time, and how many bytes of them are held: what one client cannot take from others."""

from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.errors import RETRY_SOON_S, HttpProblem

FREE_BYTES = 64 * 1024  # of each body: small requests find room beside any number of uploads


class BodyRooms:
    """The bounds on all bodies of one ingress replica together."""

    def __init__(self, max_bodies: int, max_bytes: int) -> None:
        self._max_bodies = max_bodies
        self._max_bytes = max_bytes
        self._bodies = 0
        self._bytes = 0

    @contextmanager
    def enter(self) -> "Iterator[BodyRoom]":
        """Room for one body, until it is no longer needed. Raises HttpProblem 503 where too many are read already."""
        if self._bodies >= self._max_bodies:
            raise _full("too_many_bodies", f"{self._max_bodies} bodies are being read already")
        room = BodyRoom(self)
        self._bodies += 1
        try:
            yield room
        finally:
            self._bodies -= 1
            self._bytes -= room.held_bytes

    def hold(self, more_bytes: int) -> None:
        """Take bytes from what is left. Raises HttpProblem 503 where that is too little."""
        if self._bytes + more_bytes > self._max_bytes:
            raise _full("too_many_bodies", f"uploads of {self._max_bytes // 2**20} MiB are being read already")
        self._bytes += more_bytes


class BodyRoom:
    """What one body holds."""

    def __init__(self, rooms: BodyRooms) -> None:
        self._rooms = rooms
        self.held_bytes = 0

    def grow(self, nbytes: int) -> None:
        """Hold so many bytes in all. Raises HttpProblem 503 where they do not fit beside others."""
        needed = max(0, nbytes - FREE_BYTES)
        if needed > self.held_bytes:
            self._rooms.hold(needed - self.held_bytes)
            self.held_bytes = needed


def _full(code: str, what: str) -> HttpProblem:
    return HttpProblem(503, code, f"{what}: send it again in a moment", headers={"Retry-After": str(RETRY_SOON_S)})
