"""The real application, served by a real server on a free port as Ray Serve's proxy serves it. No Ray is started."""

import asyncio
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest
import requests
import uvicorn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's models use pydantic in an old way
    from ray.serve._private.http_util import RequestIdMiddleware

    from serve_app.ingress import create_app
from serve_app.http_protocol import HttpProtocol
from serve_app.proxy import middlewares
from serve_app.settings import JobSettings, Limits, Settings
from tests.serve_app.memory import MemoryJobs

START_TIMEOUT_S = 10.0
T = TypeVar("T")


@dataclass(frozen=True)
class LiveServer:
    """A running server, and the JobManager in memory behind it."""

    host: str
    port: int
    settings: Settings
    jobs: MemoryJobs
    loop: asyncio.AbstractEventLoop

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a function in the server's event loop, where the JobManager's events belong: `call(jobs.hold)`."""

        async def run() -> T:
            return function(*arguments)

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(START_TIMEOUT_S)

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        return requests.request(method, f"{self.url}{path}", timeout=30, **options)

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> requests.Response:
        return self.request("POST", path, **options)

    def song(self, **fields: Any) -> str:
        """The request_id of a song that has ended, or has begun where the JobManager holds it."""
        queued = self.post("/generate_music_async", json={"prompt": "piano", "audio_duration": 10} | fields)
        request_id: str = queued.json()["request_id"]
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (self.jobs.views[request_id].ended or self.jobs.heard.get((request_id, 0))):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return request_id

    def send(self, *parts: bytes, pause_s: float = 0.0, timeout_s: float = 10.0) -> bytes:
        """Write bytes to a connection of their own, and read until the server closes it."""
        with socket.create_connection((self.host, self.port), timeout=timeout_s) as connection:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause_s)
            received = bytearray()
            while chunk := connection.recv(65_536):
                received += chunk
        return bytes(received)


class StartServer(Protocol):
    def __call__(self, settings: Settings, *, root_path: str = "", route_prefix: str = "") -> LiveServer: ...


@pytest.fixture
def live_settings(tmp_path: Path) -> Settings:
    """The settings of `live_server`; a test file may override this fixture."""
    return Settings(
        limits=Limits(json_mb=1, upload_mb=2, base64_mb=3),
        jobs=JobSettings(sync_wait_s=10.0),
        output_dir=tmp_path / "outputs",
        state_dir=tmp_path / "state",
        admin_key="sesame",
    )


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Starts servers that run until the test ends: `root_path` as `http_options` have it, `route_prefix` as Serve."""
    with ExitStack() as stack:

        def start(settings: Settings, *, root_path: str = "", route_prefix: str = "") -> LiveServer:
            return stack.enter_context(_running(settings, root_path, route_prefix))

        yield start


@pytest.fixture
def live_server(start_server: StartServer, live_settings: Settings) -> LiveServer:
    """A server at the root of its address."""
    return start_server(live_settings)


def _as_behind_the_proxy(app: Any, route_prefix: str) -> Any:
    """What Ray Serve's proxy puts around an application."""

    async def prefixed(scope: Any, receive: Any, send: Any) -> None:
        await app(scope | {"root_path": scope.get("root_path", "") + route_prefix}, receive, send)

    wrapped: Any = RequestIdMiddleware(prefixed)
    for middleware in middlewares():
        wrapped = middleware.cls(wrapped, *middleware.args, **middleware.kwargs)
    return wrapped


@contextmanager
def _running(settings: Settings, root_path: str, route_prefix: str) -> Iterator[LiveServer]:
    jobs = MemoryJobs()
    app = create_app(settings, jobs, behind_proxy=True)
    config = uvicorn.Config(
        _as_behind_the_proxy(app, route_prefix),
        http=HttpProtocol,
        root_path=root_path,
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        async with app.router.lifespan_context(app):
            await server.serve([listening])

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        thread = threading.Thread(target=asyncio.run, args=(serve(),), name="live server")
        thread.start()
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not server.started:
                assert thread.is_alive(), "the server did not start"
                assert time.monotonic() < deadline, "the server did not start in time"
                time.sleep(0.005)
            yield LiveServer("127.0.0.1", port, settings, jobs, loops[0])
        finally:
            server.should_exit = True
            thread.join(START_TIMEOUT_S)
    assert not thread.is_alive(), "the server did not stop"
