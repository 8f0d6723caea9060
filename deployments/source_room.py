"""A bound on the memory of decoded sources whose songs have not begun."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """A value that knows how many bytes it takes."""

    @property
    def nbytes(self) -> int: ...


S = TypeVar("S", bound=Sized)


class SourceRoom(Generic[S]):
    """Reads sources one after the other, and none while those that wait to be encoded take `most_bytes` or more.

    So they take at most that and one source more, however many songs come with one. For one event loop.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._held: dict[str, int] = {}  # bytes, by call
        self._reading = asyncio.Lock()  # in the order of arrival
        self._freed = asyncio.Event()

    @property
    def nbytes(self) -> int:
        """Return the bytes of all sources that were read and not forgotten."""
        return sum(self._held.values())

    async def read(self, call_id: str, read: Callable[[], Awaitable[S]]) -> S:
        """Read the source of a call when there is room; the call has to be forgotten once its source is let go of."""
        async with self._reading:
            while self.nbytes >= self._most_bytes:
                self._freed.clear()
                await self._freed.wait()
            source = await read()
            self._held[call_id] = source.nbytes
            return source

    def forget(self, call_id: str) -> None:
        """Count the source of a call no more: it is encoded, or the call has ended."""
        if self._held.pop(call_id, None) is not None:
            self._freed.set()
