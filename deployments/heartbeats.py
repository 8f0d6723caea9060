"""Signs of life between the messages of a call."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, TypeVar

T = TypeVar("T")


async def with_heartbeats(
    messages: AsyncGenerator[T, None], interval_s: float, heartbeat: Callable[[], T], unwanted: "asyncio.Future[None]"
) -> AsyncGenerator[T, None]:
    """Yield the messages, and a heartbeat whenever none came for `interval_s`, whatever they wait for.

    Ends early once `unwanted` is done. Closes `messages` at its own end. Raises what `messages` raises.
    """
    async with aclosing(messages):
        while True:
            following: asyncio.Future[T] = asyncio.ensure_future(anext(messages))
            awaited: set[asyncio.Future[Any]] = {following, unwanted}
            try:
                while not following.done() and not unwanted.done():
                    done, _ = await asyncio.wait(awaited, timeout=interval_s, return_when=asyncio.FIRST_COMPLETED)
                    if not done:
                        yield heartbeat()
            finally:
                if not following.done():  # else `messages` could not be closed
                    following.cancel()
                    await asyncio.wait({following})
            if unwanted.done():
                return
            try:
                message = following.result()
            except StopAsyncIteration:
                return
            yield message
