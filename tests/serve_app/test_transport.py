"""What stands between a connection and the application: the protocol, the proxy's middleware, our own."""

import asyncio
import inspect
import resource
import warnings
from typing import Any

import httpx
import pytest
import uvicorn
import uvicorn.config
from starlette.types import ASGIApp, Message, Receive, Scope, Send

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's models use pydantic in an old way
    from ray.exceptions import TaskCancelledError
    from ray.serve._private.http_util import start_asgi_http_server

    from serve_app.app import warn_of_a_bare_proxy
from serve_app.http_protocol import USUAL_CONNECTIONS, HttpProtocol, room_for
from serve_app.proxy import CALLBACK, CALLBACK_VARIABLE, CONNECTIONS_VARIABLE, NoBody, middlewares
from serve_app.settings import Limits
from tests.serve_app.memory import MemoryJobs


def test_serves_proxy_runs_our_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    """uvicorn has no setting that Ray passes on, so that `http_protocol.install` changes uvicorn's table of names.

    If this fails after an update: find what Ray's `start_asgi_http_server` gives uvicorn's Config for `http`, and make
    `install` choose HttpProtocol there. Until then requests that offer an upgrade lose their bodies.
    """
    assert "http=" not in inspect.getsource(start_asgi_http_server)
    monkeypatch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", "uvicorn.protocols.http.auto:AutoHTTPProtocol")
    middlewares()
    config = uvicorn.Config("an.application:app", loop="none")
    config.app = _nothing
    config.load()
    assert config.http_protocol_class is HttpProtocol


def test_a_cluster_whose_proxy_is_bare_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(CALLBACK_VARIABLE, CALLBACK)
    warn_of_a_bare_proxy()
    assert not caplog.records
    monkeypatch.delenv(CALLBACK_VARIABLE)
    warn_of_a_bare_proxy()
    (record,) = caplog.records
    assert f"set it to {CALLBACK}" in record.getMessage()


@pytest.mark.parametrize(
    ("given", "expected"),
    [("100", 100), ("", None), ("many", None), ("0", None), ("9" * 5_000, None), ("\u0967", None)],
)
def test_the_proxy_reads_from_its_environment_how_many_connections_may_be_open(
    monkeypatch: pytest.MonkeyPatch, given: str, expected: int | None
) -> None:
    monkeypatch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", "uvicorn.protocols.http.auto:AutoHTTPProtocol")
    monkeypatch.setattr(HttpProtocol, "max_connections", 7)
    monkeypatch.setenv(CONNECTIONS_VARIABLE, given)
    middlewares()
    max_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert HttpProtocol.max_connections == room_for(expected or USUAL_CONNECTIONS, max_files)
    assert Limits().connections == USUAL_CONNECTIONS


@pytest.mark.parametrize(("max_files", "room"), [(1_024, 512), (20_000, 19_000), (65_536, 20_000), (1, 1)])
def test_connections_leave_files_for_the_process_itself(max_files: int, room: int) -> None:
    assert room_for(20_000, max_files) == room


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that answers nothing."""


async def headers_behind_the_proxy(*headers: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    """What of a client's headers Ray's proxy sees."""
    seen: list[tuple[bytes, bytes]] = []

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend(scope["headers"])

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None: ...

    application = proxy
    for middleware in middlewares():
        application = middleware.cls(application)  # type: ignore[assignment, arg-type]
    await application({"type": "http", "path": "/", "headers": list(headers)}, receive, send)
    return seen


async def test_a_client_does_not_steer_serves_proxy() -> None:
    steering = [
        (b"x-request-timeout-seconds", b"1"),
        (b"x_request_timeout_seconds", b"1"),
        (b"x-request-disconnect-disabled", b"?1"),
        (b"x-session-id", b"me"),
        (b"X-Session_ID", b"me"),
        (b"serve_multiplexed_model_id", b"v1"),
        (b"serve-multiplexed-model-id", b"v1"),
    ]
    kept = [(b"accept", b"*/*"), (b"x-api-key", "ключ".encode()), (b"x-api-key", b"\xff")]
    assert await headers_behind_the_proxy(*steering, *kept) == kept


async def test_headers_that_serves_proxy_would_fail_at_are_dropped() -> None:
    traced = (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    assert await headers_behind_the_proxy((b"traceparent", b"\xff"), (b"x-request-id", b"\xff"), traced) == [traced]


async def test_one_request_id_of_our_form_reaches_serves_proxy() -> None:
    first, second = (b"x-request-id", b"a" * 32), (b"x-request-id", b"b" * 32)
    assert await headers_behind_the_proxy((b"x-request-id", b"mine"), first, second) == [first]


@pytest.mark.parametrize("path", ["events", "stream"])
async def test_a_follower_that_ray_has_lost_has_left(
    client: httpx.AsyncClient, jobs: MemoryJobs, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    """Ray answers the question for what a client sends next with this error, a moment before it ends the request."""
    jobs.hold_the_second_half()
    song = (await client.post("/generate_music_async", json={"prompt": "piano"})).json()["request_id"]
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.sleep(0.05)
        raise TaskCancelledError

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": f"/{path}/{song}", "query_string": b"", "headers": []}
    await app_of(client)(scope, receive, send)
    assert sent[0]["status"] == 200
    assert not [record for record in caplog.records if record.exc_info]
    left = [record.getMessage() for record in caplog.records if f"/{path}/" in record.getMessage()]
    assert len(left) == 1


def app_of(client: httpx.AsyncClient) -> ASGIApp:
    transport: Any = client._transport
    app: ASGIApp = transport.app
    return app


async def test_what_a_get_request_sends_is_not_kept_by_rays_proxy() -> None:
    sent = iter([{"type": "http.request", "body": b"a" * 1_000, "more_body": True}] * 5 + [{"type": "http.disconnect"}])
    received: list[Message] = []

    async def receive() -> Message:
        return next(sent)

    async def keeping(scope: Scope, receive: Receive, send: Send) -> None:
        while not received or received[-1]["type"] != "http.disconnect":
            received.append(await receive())

    async def send(message: Message) -> None: ...

    await NoBody(keeping)({"type": "http", "method": "GET"}, receive, send)
    assert received == [{"type": "http.request", "body": b"", "more_body": False}, {"type": "http.disconnect"}]
