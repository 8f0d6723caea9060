"""Bounds on what all clients together may hold of an ingress replica. A request over one is answered 503."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from acestep_engine.freed_memory import give_back_freed_memory
from serve_app.errors import RETRY_SOON_S, HttpProblem

TOO_MANY_BODIES = "too_many_bodies"
KEPT_BYTES = 32 * 1024 * 1024
GIVE_BACK_AFTER_S = 1.0  # when nothing refers to the last body any more
FREE_BYTES = 64 * 1024  # of each body: small requests find room beside any number of uploads


class Places:
    """So many requests of a kind at a time."""

    def __init__(self, limit: int, code: str, what: str) -> None:
        """`what` says what they do, after their number."""
        self._limit = limit
        self._code = code
        self._what = what
        self.taken = 0

    def check(self) -> None:
        """Raise HttpProblem 503 where every place is taken."""
        if self.taken >= self._limit:
            raise _full(self._code, f"{self._limit} {self._what} already")

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Take a place. Raises HttpProblem 503 where there is none."""
        self.check()
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1


class BodyRooms:
    """The bounds on all bodies of one ingress replica together."""

    def __init__(self, max_bodies: int, max_bytes: int) -> None:
        self._places = Places(max_bodies, TOO_MANY_BODIES, "bodies are being read")
        self._max_bytes = max_bytes
        self._bytes = 0
        self._most_bytes = 0  # since memory was given back
        # One large body after the other: threads that all want the interpreter's lock keep others from it.
        self.parsing = anyio.CapacityLimiter(1)

    @contextmanager
    def enter(self) -> "Iterator[BodyRoom]":
        """Room for one body, until it is no longer needed. Raises HttpProblem 503 where too many are read already."""
        with self._places.enter():
            room = BodyRoom(self)
            try:
                yield room
            finally:
                self._bytes -= room.held_bytes
                self._give_back()

    def hold(self, more_bytes: int) -> None:
        """Take bytes from what is left. Raises HttpProblem 503 where that is too little."""
        if self._bytes + more_bytes > self._max_bytes:
            raise _full(TOO_MANY_BODIES, f"uploads of {self._max_bytes // 2**20} MiB are being read already")
        self._bytes += more_bytes
        self._most_bytes = max(self._most_bytes, self._bytes)

    def _give_back(self) -> None:
        """Give the memory of large bodies back to the system, once none is read: the C library would keep it."""
        if self._bytes == 0 and self._most_bytes > KEPT_BYTES:
            self._most_bytes = 0
            loop = asyncio.get_running_loop()
            loop.call_later(GIVE_BACK_AFTER_S, loop.run_in_executor, None, give_back_freed_memory)


class BodyRoom:
    """The bytes that one body holds."""

    def __init__(self, rooms: BodyRooms) -> None:
        self._rooms = rooms
        self.held_bytes = 0
        self.parsing = rooms.parsing

    def grow(self, nbytes: int) -> None:
        """Hold so many bytes in all. Raises HttpProblem 503 where they do not fit beside others."""
        needed = max(0, nbytes - FREE_BYTES)
        if needed > self.held_bytes:
            self._rooms.hold(needed - self.held_bytes)
            self.held_bytes = needed


def _full(code: str, what: str) -> HttpProblem:
    return HttpProblem(503, code, f"{what}: send it again in a moment", headers={"Retry-After": str(RETRY_SOON_S)})
