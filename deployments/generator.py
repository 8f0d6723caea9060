"""The deployment that runs diffusion and decoding. One replica has one engine, which many songs share step by step."""

import asyncio
import dataclasses
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from acestep_engine.audio import AudioLimits, SourceAudio, read_audio
from acestep_engine.conditioning import Conditioning
from acestep_engine.encode import AudioEncoder
from acestep_engine.params import OUTPUT_SAMPLE_RATE_HZ, AdapterLimits, ModelSpec, Progress
from acestep_engine.requests import Decoded, Finished, Inputs, Latents
from deployments.failures import is_unexpected
from deployments.hangs import end_hanging_replica, end_process
from deployments.heartbeats import with_heartbeats
from deployments.messages import JOB_MANAGER, ByteArray, Heartbeat, Rendered, RenderJob, is_latents
from deployments.source_room import SourceRoom

if TYPE_CHECKING:  # they take seconds to import, and only the replica needs them
    from deployments.engine_host import Call, EngineHost

# Each message wakes two processes, which on a CPU interrupt the engine.
PROGRESS_INTERVAL_S = 0.25  # of one call, as long as there are few
CPU_PROGRESS_PER_S = 4  # of all calls of a replica together
GPU_PROGRESS_PER_S = 32
HEARTBEAT_S = 5.0  # of a call with nothing to tell: it waits for a thread, or is paused for others
REPORT_INTERVAL_S = 1.0
REPORT_TIMEOUT_S = 5.0
FILE_THREADS = 2  # that write audio files beside the engine's own thread; another one reads sources
# Of decoded sources of songs that have not begun; there may be one more. The longest at 48 kHz takes 92 MB.
MOST_SOURCE_BYTES = 2**27

logger = logging.getLogger("ray.serve")
T = TypeVar("T")
Message = Progress | Heartbeat | ByteArray | Rendered


class _Listener:
    """What the event loop hears of one call from the engine's thread, which never waits for it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.changed = asyncio.Event()
        self.urgent = asyncio.Event()  # there is audio, or the end
        self.ended = False
        self.progress: Progress | None = None
        self.audio: deque[Decoded] = deque()

    def note(self, progress: Progress) -> None:
        self.progress = progress
        if not self.changed.is_set():  # else the loop, waking up for nothing, would only hold up the engine's thread
            self._tell(self.changed.set)

    def note_audio(self, heard: Decoded) -> None:
        self.audio.append(heard)
        self._tell(self._hurry)

    def note_end(self, _: object) -> None:
        self._tell(self._end)

    async def hear(self) -> None:
        """Wait until there is news."""
        await self.changed.wait()
        self.changed.clear()

    def _end(self) -> None:
        self.ended = True
        self._hurry()

    def _hurry(self) -> None:
        self.urgent.set()
        self.changed.set()

    def _tell(self, what: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed: the replica stops
            self._loop.call_soon_threadsafe(what)


class _SongFile:
    """Encodes one song while it is decoded. One thread at a time."""

    def __init__(self, job: RenderJob) -> None:
        self._job = job
        self._encoder: AudioEncoder | None = None  # until the song's length is known
        self.samples = 0
        self.write_s = 0.0

    def add(self, heard: Decoded) -> ByteArray:
        """The file's next bytes; none if the encoder wants more first. Raises NumericalError."""
        started = time.perf_counter()
        if self._encoder is None:
            self.samples = heard.song_samples
            self._encoder = AudioEncoder(self._job.audio_format, self.samples, self._job.tags)
        return self._timed(self._encoder.push(heard.samples), started)

    def finish(self, unheard: Iterable[Decoded]) -> ByteArray:
        """The rest, with what was decoded since the last part. Raises NumericalError."""
        parts = [self.add(heard) for heard in unheard]
        started = time.perf_counter()
        assert self._encoder is not None
        return np.concatenate([*parts, self._timed(self._encoder.finish(), started)])

    def _timed(self, part: bytes, started: float) -> ByteArray:
        self.write_s += time.perf_counter() - started
        return np.frombuffer(part, dtype=np.uint8)


class Generator:
    """Songs from conditioning, many at once. Loads the model that a call asks for if it has another one.

    It tells the JobManager every second where it runs, what it has loaded and which calls run: asking would wait behind
    those calls, because Serve counts every call against `max_ongoing_requests`.
    """

    async def __init__(  # type: ignore[misc]
        self,
        spec: ModelSpec,
        use_gpu: bool,
        limits: AudioLimits,
        download_to: str | None,
        adapter_limits: AdapterLimits,
        hangs_after_s: float,
    ) -> None:
        """Returns once the model is in memory; `download_to` is the folder that may be filled from the published place.

        The replica ends when a step of its engine takes longer than `hangs_after_s`.

        Raises CheckpointError if it cannot be loaded.
        """
        logger.addFilter(is_unexpected)
        context = serve.get_replica_context()
        self._replica_id = context.replica_id.unique_id
        self._gpu_ids = tuple(ray.get_runtime_context().get_accelerator_ids().get("GPU", ()))
        self._limits = limits
        self._hangs_after_s = hangs_after_s
        self._progress_per_s = GPU_PROGRESS_PER_S if use_gpu else CPU_PROGRESS_PER_S
        self._calls: dict[str, asyncio.Future[None]] = {}  # that run now: done when nobody wants one any more
        self._files = ThreadPoolExecutor(max_workers=FILE_THREADS, thread_name_prefix="audio-files")
        self._source_room: SourceRoom[SourceAudio] = SourceRoom(MOST_SOURCE_BYTES)
        self._sources = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sources")
        device = None if use_gpu else "cpu"
        self._host = await self._in_thread(lambda: _make_host(device, download_to, adapter_limits))
        self._tell_router = _teller_of_adapters(adapter_limits)
        await asyncio.wrap_future(self._host.load(spec))
        self._job_manager = serve.get_deployment_handle(JOB_MANAGER, context.app_name)
        self._reporting = asyncio.create_task(self._report_again_and_again())

    async def generate(
        self,
        spec: ModelSpec,
        job: RenderJob,
        source: ByteArray | Latents | None,
        conditioning: "Conditioning",
        target: "Conditioning | None" = None,
    ) -> AsyncIterator[Message]:
        """Progress, the first at once and then up to four a second, and at last one Rendered; Heartbeats in between.

        Heartbeats come whatever the song waits for: a thread that reads its source, another model, other songs.

        Parts of the encoded file come in between as soon as they are decoded; all of them and the `rest` are the file.
        `source` is an audio file or latents, `target` what a song is edited to. Cancelling aborts within one step.
        Raises EngineError or GpuMemoryError.
        """
        messages = self._make(spec, job, source, conditioning, target)
        unwanted = self._calls[job.call_id] = asyncio.get_running_loop().create_future()
        try:
            steady = with_heartbeats(messages, HEARTBEAT_S, lambda: Heartbeat(self._host.steps), unwanted)
            async with aclosing(steady) as told:
                async for message in told:
                    yield message
        finally:
            del self._calls[job.call_id]

    async def _make(
        self,
        spec: ModelSpec,
        job: RenderJob,
        source: ByteArray | Latents | None,
        conditioning: "Conditioning",
        target: "Conditioning | None",
    ) -> AsyncGenerator[Message, None]:
        """As `generate`, without the Heartbeats."""
        from deployments.engine_host import Call

        yield Progress("encoding")
        if job.params.active_adapter is not None:
            await self._tell_router(job.params.active_adapter.digest)
        listener, file, end = _Listener(), _SongFile(job), Future[Finished]()
        end.add_done_callback(listener.note_end)
        call: Call | None = None
        try:
            # Nothing but the call holds what was read: the engine lets go of it once it is encoded.
            call = Call(
                job.call_id,
                spec,
                job.params,
                Inputs(conditioning, target, await self._begun_from(job, source)),
                job.priority,
                listener.note,
                listener.note_audio,
                end,
                job.latent_space,
            )
            self._host.submit(call)
            while not listener.ended:
                await listener.hear()
                self._source_room.forget(job.call_id)
                async for part in self._encoded(file, listener):
                    yield part
                if listener.progress is not None and not listener.ended:
                    yield listener.progress
                    await self._pause(listener.urgent)
            finished = end.result()
            rest = await self._in_thread(partial(file.finish, listener.audio))
            yield self._rendered(finished, file, rest, call)
        finally:
            self._source_room.forget(job.call_id)
            if call is not None:
                self._host.abort(call)

    async def load(self, spec: ModelSpec) -> None:
        """Have this model in memory, after the songs that are being made.

        Raises CheckpointError; then none is loaded.
        """
        try:
            await asyncio.wrap_future(self._host.load(spec))
        finally:
            await self._report()

    async def check_health(self) -> None:
        """End the process when a step takes far too long or the engine's thread has ended. Serve calls it each second.

        Serve then starts another replica, and the songs are made there.
        """
        busy_for_s = self._host.busy_for_s()
        if self._host.is_dead:
            end_hanging_replica("its engine's thread has ended")
        elif busy_for_s > self._hangs_after_s:
            end_hanging_replica(f"its engine has been at one step for {busy_for_s:.0f} s")

    def __del__(self) -> None:
        if hasattr(self, "_reporting"):
            self._reporting.cancel()
            self._host.close()

    async def _begun_from(self, job: RenderJob, source: ByteArray | Latents | None) -> SourceAudio | Latents | None:
        """Return what the engine begins from: a file is read, when there is room for it."""
        if source is None or is_latents(source):
            return source
        loop, file = asyncio.get_running_loop(), source.data
        read = partial(read_audio, file, self._limits)
        return await self._source_room.read(job.call_id, lambda: loop.run_in_executor(self._sources, read))

    async def _encoded(self, file: _SongFile, listener: _Listener) -> AsyncIterator[ByteArray]:
        """The file's parts, as far as there is audio now and more to come."""
        listener.urgent.clear()
        while listener.audio and not listener.ended:
            part = await self._in_thread(partial(file.add, listener.audio.popleft()))
            if part.size:
                yield part

    async def _pause(self, urgent: asyncio.Event) -> None:
        """Until the next progress may be told, or there is audio, or the end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(PROGRESS_INTERVAL_S, len(self._calls) / self._progress_per_s)):
                await urgent.wait()

    def _rendered(self, finished: Finished, file: _SongFile, rest: ByteArray, call: "Call") -> Rendered:
        return Rendered(
            rest=rest,
            latents=finished.latents,
            duration_s=file.samples / OUTPUT_SAMPLE_RATE_HZ,
            timings=dataclasses.replace(finished.timings, write_s=file.write_s),
            model=call.spec.name,
            device=self._host.describe(self._replica_id, self._gpu_ids).device,
            latent_space=call.made_in,
        )

    async def _report_again_and_again(self) -> None:
        while True:
            await self._report()
            await asyncio.sleep(REPORT_INTERVAL_S)

    async def _report(self) -> None:
        """Say what is loaded and which calls run, and end the calls that the JobManager does not know.

        Serve may lose a cancel, and a JobManager that died cancels nothing.
        """
        state = self._host.describe(self._replica_id, self._gpu_ids)
        try:
            async with asyncio.timeout(REPORT_TIMEOUT_S):
                unknown: tuple[str, ...] = await self._job_manager.report.remote(state, tuple(self._calls))
        except (RayError, RayServeException, TimeoutError) as error:
            logger.debug("the job manager does not listen: %s", error)
            return
        for call_id in unknown:
            unwanted = self._calls.get(call_id)
            if unwanted is not None and not unwanted.done():
                logger.info("%s is aborted: the job manager does not know it", call_id)
                unwanted.set_result(None)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._files, work)


def _make_host(device: str | None, download_to: str | None, adapter_limits: AdapterLimits) -> "EngineHost":
    from deployments.engine_host import EngineHost  # takes seconds, and only the replica needs it

    return EngineHost(device, download_to, adapter_limits, on_gpu_lost=end_process)


def _teller_of_adapters(limits: AdapterLimits) -> Callable[[str], Awaitable[str]]:
    """Tells Serve's router that this replica has an adapter from now on, so that calls for it come here first.

    Serve forgets the least recently used over the same number as the engine does.
    """

    async def adapter(digest: str) -> str:
        return digest  # the engine loads it by itself, beside its songs

    told: Callable[[str], Awaitable[str]] = serve.multiplexed(max_num_models_per_replica=limits.most)(adapter)
    return told
