"""Signs of life between the messages of a call."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import TypeVar

T = TypeVar("T")


async def with_heartbeats(
    messages: AsyncGenerator[T, None], interval_s: float, heartbeat: Callable[[], T]
) -> AsyncIterator[T]:
    """Yield the messages, and a heartbeat whenever none came for `interval_s`, whatever they wait for.

    Closes `messages` at its own end. Raises what `messages` raises.
    """
    async with aclosing(messages):
        while True:
            following = asyncio.ensure_future(anext(messages))
            try:
                while not (await asyncio.wait({following}, timeout=interval_s))[0]:
                    yield heartbeat()
            except BaseException:
                following.cancel()
                await asyncio.wait({following})  # else `messages` could not be closed
                raise
            try:
                message = following.result()
            except StopAsyncIteration:
                return
            yield message
