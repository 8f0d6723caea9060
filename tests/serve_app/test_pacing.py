"""A burst of requests begins and leaves a few at a time, and /health does not wait for it."""

import asyncio

import pytest
from starlette.types import Message, Receive, Scope, Send

from serve_app.pacing import BEGINNING, BEGINNING_S, LEAVING_S, Paced


class App:
    """An application that records requests, answers /quick at once, and other paths when `answer` is set."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.answer = asyncio.Event()
        self.left_at: list[float] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.paths.append(scope["path"])
        if scope["path"] == "/followed":
            assert (await receive())["type"] == "http.disconnect"
            self.left_at.append(asyncio.get_running_loop().time())
            return
        if scope["path"] != "/quick":
            await self.answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})


async def leaves() -> Message:
    return {"type": "http.disconnect"}


async def ignore(message: Message) -> None:
    """A client."""


def asks(paced: Paced, path: str) -> "asyncio.Task[None]":
    return asyncio.create_task(_ask(paced, path))


async def _ask(paced: Paced, path: str) -> None:
    await paced({"type": "http", "path": path}, leaves, ignore)


async def test_a_burst_begins_a_few_at_a_time_and_all_of_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.pacing.BEGINNING_S", 0.2)
    app = App()
    paced = Paced(app)
    burst = [asks(paced, f"/slow/{number}") for number in range(3 * BEGINNING)]
    await asyncio.sleep(0.05)
    assert app.paths == [f"/slow/{number}" for number in range(BEGINNING)]
    await asyncio.sleep(0.8)
    assert len(app.paths) == 3 * BEGINNING
    app.answer.set()
    await asyncio.gather(*burst)


async def test_health_does_not_wait_for_a_burst(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.pacing.BEGINNING_S", 60.0)
    app = App()
    paced = Paced(app)
    burst = [asks(paced, "/slow") for _ in range(3 * BEGINNING)]
    watching = [asks(paced, "/health"), asks(paced, "/prefix/health")]
    await asyncio.sleep(0.05)
    assert app.paths.count("/slow") == BEGINNING
    assert app.paths[-2:] == ["/health", "/prefix/health"]
    app.answer.set()
    await asyncio.gather(*burst, *watching)


async def test_requests_that_are_answered_quickly_do_not_wait_for_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.pacing.BEGINNING_S", 60.0)
    app = App()
    paced = Paced(app)
    await asyncio.wait_for(asyncio.gather(*(asks(paced, "/quick") for _ in range(100))), 5)
    assert len(app.paths) == 100


async def test_clients_that_leave_at_once_are_told_of_one_after_the_other() -> None:
    app = App()
    paced = Paced(app)
    await asyncio.gather(*(asks(paced, "/followed") for _ in range(12)))
    assert app.left_at[-1] - app.left_at[0] >= 11 * LEAVING_S * 0.9


async def test_a_request_that_fails_gives_its_place_to_others() -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise ConnectionError

    paced = Paced(fail)
    for _ in range(2 * BEGINNING):
        with pytest.raises(ConnectionError):
            await paced({"type": "http", "path": "/"}, leaves, ignore)
    assert BEGINNING_S < 1
