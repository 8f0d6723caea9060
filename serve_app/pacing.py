"""A burst of requests begins, and leaves, a few at a time, so that the server goes on answering others."""

import asyncio
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Ray takes about six milliseconds of the proxy and of the ingress to begin a request: a thousand at once would hold up
# every other for seconds. These let through more than a proxy can begin, as long as answers begin quickly.
BEGINNING = 8
BEGINNING_S = 0.25  # a request whose answer has not begun by then waits for something else
LEAVING_S = 0.006  # between two clients that go away: Ray takes as long to cancel what was done for one
UNPACED = ("/health", "/-/healthz", "/-/routes")  # ends of the paths of health checks


class Paced:
    """Starts a few requests at a time, in order of arrival, and reports disconnected clients one after the other.

    It belongs in front of Ray's proxy.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._places = asyncio.Semaphore(BEGINNING)
        self._leaving = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"].endswith(UNPACED):
            await self._app(scope, receive, send)
            return
        await self._places.acquire()
        has_begun = _once(self._places.release)
        timer = asyncio.get_running_loop().call_later(BEGINNING_S, has_begun)

        async def send_one(message: Message) -> None:
            has_begun()
            await send(message)

        async def receive_one() -> Message:
            message = await receive()
            if message["type"] in ("http.disconnect", "websocket.disconnect"):
                async with self._leaving:
                    await asyncio.sleep(LEAVING_S)
            return message

        try:
            await self._app(scope, receive_one, send_one)
        finally:
            timer.cancel()
            has_begun()


def _once(work: Callable[[], None]) -> Callable[[], None]:
    done = False

    def do_once() -> None:
        nonlocal done
        if not done:
            done = True
            work()

    return do_once
