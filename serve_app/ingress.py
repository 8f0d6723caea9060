"""The HTTP application, and the Serve deployment that runs it. Ray is used here and nowhere else on the HTTP side."""

import asyncio
import importlib.metadata
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from acestep_engine.errors import EngineError
from deployments.messages import (
    AudioFile,
    AudioPart,
    ByteArray,
    EventBatch,
    JobView,
    LoraInfo,
    LyricReading,
    QueueStatus,
    Resend,
    ServiceError,
    ServiceStatus,
    SourceSong,
    Submission,
)
from serve_app import errors, openapi
from serve_app.errors import BackendFailedError, BackendUnavailableError
from serve_app.middleware import Application
from serve_app.routes import admin, docs, events, generate, jobs, loras, lyrics, uploads
from serve_app.service import JobManagerClient, Service, StatusWatch
from serve_app.settings import Settings

# Far more than the bounds on what may wait, follow, read and be read (`limits`): /health always finds a place.
MAX_REQUESTS = 20_000
PATIENCE_S = 30.0  # with a JobManager that restarts, which takes some seconds
RETRY_PAUSE_S = 0.5


def package_version() -> str:
    """The installed version; a checkout that runs without installation has none."""
    try:
        return importlib.metadata.version("acestep-serve")
    except importlib.metadata.PackageNotFoundError:
        return "source"


def create_app(settings: Settings, job_manager: JobManagerClient, *, behind_proxy: bool = False) -> FastAPI:
    """The application over any JobManager. `behind_proxy`: Ray Serve's, which answers X-Request-ID itself."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service = Service(settings, job_manager, StatusWatch(job_manager))
        app.state.service = service
        watching = service.spawn(service.watch.run())
        yield
        watching.cancel()

    app = Application(
        behind_proxy=behind_proxy,
        lost_client=RayError,
        cors_origins=settings.cors_origins,
        allowed_hosts=settings.allowed_hosts,
        title="ACE-Step music generation",
        version=package_version(),
        description=openapi.DESCRIPTION,
        openapi_tags=openapi.TAGS,
        lifespan=lifespan,
        generate_unique_id_function=lambda route: route.name,  # generated clients call their methods by it
        docs_url=None,  # FastAPI's own pages load their scripts from the internet
        redoc_url=None,
    )
    for router in (
        generate.router,
        uploads.router,
        lyrics.router,
        jobs.router,
        events.router,
        loras.router,
        admin.router,
        docs.router,
    ):
        app.include_router(router)
    errors.install(app)
    openapi.install(app)
    return app


@contextmanager
def _translated(method: str) -> Iterator[None]:
    """What Ray wraps or raises itself becomes our exceptions."""
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, ServiceError | EngineError):
            raise error.cause from None
        raise BackendFailedError(f"{method}: {type(error.cause).__name__}") from error
    except (RayError, RayServeException) as error:  # dead, full, not deployed, cancelled on its way
        raise BackendUnavailableError(f"{method}: {type(error).__name__}") from error


class HandleClient:
    """A JobManagerClient over the deployment's handle.

    While the JobManager restarts, calls are made again. None of them does more when it is made twice: a submission has
    a key, by which the JobManager knows it again.
    """

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle
        self._stream = handle.options(stream=True)

    async def _call(self, method: str, *arguments: object) -> Any:
        give_up_at = time.monotonic() + PATIENCE_S
        while True:
            try:
                with _translated(method):
                    return await getattr(self._handle, method).remote(*arguments)
            except BackendUnavailableError:
                if time.monotonic() > give_up_at:
                    raise
            await asyncio.sleep(RETRY_PAUSE_S)

    async def submit(self, submission: Submission | Resend) -> JobView:
        view: JobView = await self._call("submit", submission)
        return view

    async def digest_of_key(self, key: str) -> str | None:
        digest: str | None = await self._call("digest_of_key", key)
        return digest

    async def submit_and_wait(
        self, submission: Submission | Resend, timeout_s: float, wants_audio: bool
    ) -> AsyncIterator[JobView | AudioFile]:
        asked_at = time.monotonic()
        while True:
            left_s = max(0.0, timeout_s - (time.monotonic() - asked_at))
            try:
                with _translated("submit_and_wait"):
                    async for answer in self._stream.submit_and_wait.remote(submission, left_s, wants_audio):
                        yield answer
                return
            except BackendUnavailableError:
                if time.monotonic() > asked_at + timeout_s + PATIENCE_S:
                    raise
            await asyncio.sleep(RETRY_PAUSE_S)

    async def status(self, request_id: str) -> JobView:
        view: JobView = await self._call("status", request_id)
        return view

    async def result(self, request_id: str, index: int) -> AudioFile:
        file: AudioFile = await self._call("result", request_id, index)
        return file

    async def listen(self, request_id: str, index: int, heard: int, edition: str | None, wait_s: float) -> AudioPart:
        part: AudioPart = await self._call("listen", request_id, index, heard, edition, wait_s)
        return part

    async def source_song(self, request_id: str, index: int) -> SourceSong:
        song: SourceSong = await self._call("source_song", request_id, index)
        return song

    async def upload(self, digest: str) -> ByteArray:
        content: ByteArray = await self._call("upload", digest)
        return content

    async def events(self, request_id: str, after: int, wait_s: float) -> EventBatch:
        batch: EventBatch = await self._call("events", request_id, after, wait_s)
        return batch

    async def cancel(self, request_id: str, client_left: bool = False) -> JobView:
        view: JobView = await self._call("cancel", request_id, client_left)
        return view

    async def read_lyrics(self, lyrics: str, vocal_language: str | None) -> LyricReading:
        reading: LyricReading = await self._call("read_lyrics", lyrics, vocal_language)
        return reading

    async def queue_status(self) -> QueueStatus:
        queue: QueueStatus = await self._call("queue_status")
        return queue

    async def service_status(self) -> ServiceStatus:
        status: ServiceStatus = await self._call("service_status")
        return status

    async def loras(self) -> tuple[LoraInfo, ...]:
        loras: tuple[LoraInfo, ...] = await self._call("loras")
        return loras

    async def register_lora(self, name: str, path: str, root: str) -> LoraInfo:
        lora: LoraInfo = await self._call("register_lora", name, path, root)
        return lora

    async def remove_lora(self, name: str) -> None:
        await self._call("remove_lora", name)

    async def initialize(self, name: str | None, options: dict[str, bool]) -> ServiceStatus:
        status: ServiceStatus = await self._call("initialize", name, options)
        return status


@serve.deployment(max_ongoing_requests=MAX_REQUESTS)
@serve.ingress()
class Ingress:
    """One replica of the HTTP side. Holds no state that another replica would need."""

    def __init__(self, settings: Settings, job_manager: DeploymentHandle) -> None:
        self._settings = settings
        self._job_manager = HandleClient(job_manager)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray Serve once, in the replica."""
        return create_app(self._settings, self._job_manager, behind_proxy=True)
