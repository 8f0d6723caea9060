"""The real application over a JobManager in memory."""

import warnings
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol

import httpx
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's models use pydantic in an old way
    from serve_app.ingress import create_app
from serve_app.settings import CallbackSettings, JobSettings, Limits, Settings
from tests.serve_app.memory import MemoryJobs, wav


class Connect(Protocol):
    async def __call__(
        self, settings: Settings, *, behind_proxy: bool = False, jobs: MemoryJobs = ...
    ) -> httpx.AsyncClient: ...


@pytest.fixture
def audio_root(tmp_path: Path) -> Path:
    root = tmp_path / "audio"
    root.mkdir()
    return root


@pytest.fixture
def settings(tmp_path: Path, audio_root: Path) -> Settings:
    """Small limits, so that what is over them is small too."""
    return Settings(
        checkpoints={"mine": "/srv/checkpoints/mine"},
        limits=Limits(json_mb=1, upload_mb=2, base64_mb=3, body_timeout_s=0.3),
        jobs=JobSettings(sync_wait_s=5.0),
        output_dir=tmp_path / "outputs",
        state_dir=tmp_path / "state",
        audio_root=audio_root,
        admin_key="sesame-ключ",
        admin_open=False,
        callbacks=CallbackSettings(hosts=("hooks.example.org",)),
    )


@pytest.fixture
async def jobs() -> MemoryJobs:
    return MemoryJobs()


@pytest.fixture
async def connect(jobs: MemoryJobs) -> AsyncIterator[Connect]:
    """A client of an application with the given settings, running until the test ends."""
    async with AsyncExitStack() as stack:

        async def start(
            settings: Settings, *, behind_proxy: bool = False, jobs: MemoryJobs = jobs
        ) -> httpx.AsyncClient:
            app = create_app(settings, jobs, behind_proxy=behind_proxy)
            await stack.enter_async_context(app.router.lifespan_context(app))
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            return await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://test"))

        yield start


@pytest.fixture
async def client(connect: Connect, settings: Settings) -> httpx.AsyncClient:
    return await connect(settings)


@pytest.fixture(scope="session")
def wav_file() -> bytes:
    return wav()
