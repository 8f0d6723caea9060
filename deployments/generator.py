"""The deployment that runs diffusion and decoding. One replica has one engine, and one thread that uses it."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from acestep_engine.audio import AudioLimits
from acestep_engine.conditioning import Conditioning
from acestep_engine.params import ModelSpec, Progress
from deployments.failures import ReplicaBrokenError
from deployments.messages import JOB_MANAGER, ByteArray, Rendered, RenderJob

if TYPE_CHECKING:  # it takes seconds to import, and only the replica needs it
    from deployments.engine_host import EngineHost

PROGRESS_INTERVAL_S = 0.1
REPORT_INTERVAL_S = 1.0
REPORT_TIMEOUT_S = 5.0
REPLACEMENT_WAIT_S = 60.0  # longer than Serve takes to replace a replica whose health check fails

logger = logging.getLogger("ray.serve")
T = TypeVar("T")


class _Call:
    """One call of `generate`, between the event loop and the engine's thread. The thread never waits for the loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.changed = asyncio.Event()
        self.progress: Progress | None = None
        self.cancelled = threading.Event()

    def report(self, progress: Progress) -> None:
        self.progress = progress
        self._loop.call_soon_threadsafe(self.changed.set)


class Generator:
    """Songs from conditioning, one at a time. Loads the model that a call asks for if it has another one.

    It tells the JobManager every second where it runs and what it has loaded: asking would wait behind the song that is
    being made, because Serve counts every call against `max_ongoing_requests`.
    """

    async def __init__(  # type: ignore[misc]
        self, spec: ModelSpec, use_gpu: bool, limits: AudioLimits, download_to: str | None
    ) -> None:
        """Returns once the model is in memory; `download_to` is the folder that may be filled from the published place.

        Raises CheckpointError if it cannot be loaded.
        """
        context = serve.get_replica_context()
        self._replica_id = context.replica_id.unique_id
        self._gpu_ids = tuple(ray.get_runtime_context().get_accelerator_ids().get("GPU", ()))
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._host = await self._in_thread(lambda: _make_host(None if use_gpu else "cpu", limits, download_to))
        await self._in_thread(lambda: self._host.load(spec))
        self._job_manager = serve.get_deployment_handle(JOB_MANAGER, context.app_name)
        self._reporting = asyncio.create_task(self._report_again_and_again())

    async def generate(
        self, spec: ModelSpec, job: RenderJob, conditioning: "Conditioning", source: ByteArray | None = None
    ) -> AsyncIterator[Progress | Rendered]:
        """Progress, the first at once and then at most ten a second, and at last one Rendered.

        `source` is the reference's audio file. Cancelling aborts the engine within one forward. Raises EngineError,
        GpuMemoryError, or ReplicaBrokenError.
        """
        call = _Call()
        rendered = self._in_thread(
            lambda: self._host.render(spec, job, conditioning, source, call.report, call.cancelled.is_set)
        )
        rendered.add_done_callback(lambda _: call.changed.set())
        try:
            while True:
                await call.changed.wait()
                call.changed.clear()
                if rendered.done():
                    break
                if call.progress is not None:
                    yield call.progress
                    await asyncio.wait([rendered], timeout=PROGRESS_INTERVAL_S)
            try:
                yield await rendered
            except ReplicaBrokenError:
                # Answering would send the caller back here at once. Serve replaces this replica meanwhile.
                await asyncio.sleep(REPLACEMENT_WAIT_S)
                raise
        finally:
            call.cancelled.set()
            rendered.cancel()

    async def load(self, spec: ModelSpec) -> None:
        """Have this model in memory, after the song that is being made. Raises CheckpointError; then none is loaded."""
        try:
            await self._in_thread(lambda: self._host.load(spec))
        finally:
            await self._report()

    def check_health(self) -> None:
        """Serve calls this again and again, and replaces the replica once it raises."""
        if self._host.broken is not None:
            raise ReplicaBrokenError(self._host.broken)

    def __del__(self) -> None:
        if hasattr(self, "_reporting"):
            self._reporting.cancel()

    async def _report_again_and_again(self) -> None:
        while True:
            await self._report()
            await asyncio.sleep(REPORT_INTERVAL_S)

    async def _report(self) -> None:
        try:
            async with asyncio.timeout(REPORT_TIMEOUT_S):
                await self._job_manager.report.remote(self._host.describe(self._replica_id, self._gpu_ids))
        except (RayError, RayServeException, TimeoutError) as error:
            logger.debug("the job manager does not listen: %s", error)

    def _in_thread(self, work: Callable[[], T]) -> "asyncio.Future[T]":
        return asyncio.get_running_loop().run_in_executor(self._thread, work)


def _make_host(device: str | None, limits: AudioLimits, download_to: str | None) -> "EngineHost":
    from deployments.engine_host import EngineHost  # takes seconds, and only the replica needs it

    return EngineHost(device, limits, download_to)
