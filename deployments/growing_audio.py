"""A song's file while it is made."""

import asyncio
import uuid
from contextlib import suppress

import numpy as np

from deployments.messages import ByteArray

READ_BYTES = 1024 * 1024  # at most, at a time


class GrowingAudio:
    """What there is of the file, for any number of readers, each at a place of its own. Use it from one event loop.

    An attempt that follows one that was lost makes the song from its beginning, and normally the same bytes: readers go
    on behind what they have. Should it make others, what they have is of no use, and `edition` is another one.
    """

    def __init__(self) -> None:
        self.edition = uuid.uuid4().hex
        self.complete = False  # and on the disk
        self.closed = False  # nothing comes any more
        self._content = bytearray()
        self._made = 0  # bytes that the attempt has made
        self._changed = asyncio.Event()

    def begin(self) -> None:
        """An attempt begins."""
        self._made = 0

    def add(self, part: ByteArray) -> None:
        """The attempt's next bytes."""
        content = part.tobytes()
        known = self._content[self._made : self._made + len(content)]
        if not content.startswith(known):
            self._drop_the_rest()
            known = bytearray()
        self._content += content[len(known) :]
        self._made += len(content)
        self._notify()

    def finish(self) -> ByteArray:
        """All of the file: the attempt has made its last byte."""
        if self._made < len(self._content):
            self._drop_the_rest()
        return np.frombuffer(self._content, dtype=np.uint8)

    def close(self, *, complete: bool) -> None:
        """The file is complete and on the disk, or will never be. Only the first call counts."""
        if not self.closed:
            self.closed, self.complete = True, complete
            self._notify()

    async def wait_beyond(self, offset: int, timeout_s: float) -> None:
        """Until there is more than so many bytes, or it is closed, at most so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self.has_beyond(offset) and not self.closed:
                    await self._changed.wait()

    def read(self, offset: int) -> ByteArray:
        """What there is from there on, up to `READ_BYTES`."""
        return np.frombuffer(bytes(self._content[offset : offset + READ_BYTES]), dtype=np.uint8)

    def has_beyond(self, offset: int) -> bool:
        """Whether there is more than so many bytes."""
        return len(self._content) > offset

    def _drop_the_rest(self) -> None:
        del self._content[self._made :]
        self.edition = uuid.uuid4().hex

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
