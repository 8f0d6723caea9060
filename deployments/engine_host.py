"""A Generator's engine and the one thread that steps it. Many calls share the engine; each may come and go at any step.

It loads torch: `deployments.generator` imports it in the replica only, so that building the application does not.
"""

import gc
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from acestep_engine.calibrate import Calibration
from acestep_engine.devices import (
    describe_device,
    free_memory,
    is_lost,
    is_out_of_memory,
    pick_device,
    why_no_gpu,
)
from acestep_engine.download import ensure_checkpoint
from acestep_engine.engine import Engine
from acestep_engine.errors import EngineError
from acestep_engine.freed_memory import give_back_freed_memory, keep_freed_memory
from acestep_engine.lanes import Lanes
from acestep_engine.live_request import Unit
from acestep_engine.params import AdapterLimits, GenerationParams, ModelSpec, Progress
from acestep_engine.requests import Decoded, Failed, Finished, Inputs, Moved
from deployments.adapter_queue import AdapterQueue
from deployments.cpus import available_cpus
from deployments.failures import GpuMemoryError, LatentSpaceError, RenderError, SharedStepError
from deployments.latent_space import latent_space_of
from deployments.messages import ReplicaState

ENGINE_NICENESS = 4  # beside that of other threads, where the engine's work is the CPU's
SONGS_TO_GIVE_BACK = 16  # after so many the process gives back what it keeps of freed memory
IDLE_S = 2.0  # and after so long without any

logger = logging.getLogger("ray.serve")


@dataclass(eq=False)
class Call:
    """One song that somebody waits for. `on_progress` and `on_audio` run in the engine's thread and must not block."""

    call_id: str
    spec: ModelSpec
    params: GenerationParams
    inputs: Inputs
    priority: int
    on_progress: Callable[[Progress], None]
    on_audio: Callable[[Decoded], None]
    end: "Future[Finished]"
    latent_space: str = ""  # that its source latents lie in, if they say so
    made_in: str = ""  # the space of its own latents, once it has begun: another model may be there at its end


@dataclass(eq=False)
class _Load:
    """Somebody wants another model in memory."""

    spec: ModelSpec
    loaded: "Future[None]"


class _TimedLanes(Lanes[Unit]):
    """Lanes that know since when each of their works runs."""

    def __init__(self, most: int = 1, cores: int = 1) -> None:
        super().__init__(most, cores)
        self._since: dict[object, float] = {}

    def start(self, works: Sequence[Callable[[], Unit]]) -> None:
        super().start([partial(self._timed, work) for work in works])

    def _timed(self, work: Callable[[], Unit]) -> Unit:
        key = object()
        self._since[key] = time.monotonic()
        try:
            return work()
        finally:
            del self._since[key]

    def since(self) -> list[float]:
        """Return since when each work runs. From any thread."""
        return list(self._since.values())


class EngineHost:
    """`device` None is the GPU if the replica has one. `download_to` may be filled from the published place.

    Calls begin in the order they came. One for another model, or a `load` of one, waits until the engine has nothing to
    do, and all that came after it wait as well. One whose adapter has to be loaded holds nobody up.
    `on_gpu_lost` runs in the engine's thread when the GPU will answer nothing any more.
    """

    def __init__(
        self,
        device: str | None,
        download_to: str | None,
        adapter_limits: AdapterLimits,
        on_gpu_lost: Callable[[], None],
    ) -> None:
        reason = why_no_gpu() if device is None else None
        if reason is not None:
            logger.warning("a GPU is reserved here that torch cannot use; songs are made on the CPU: %s", reason)
        self._device = device
        self._download_to = download_to
        self._adapter_limits = adapter_limits
        self._on_gpu_lost = on_gpu_lost
        self._engine: Engine | None = None
        self._latent_space = ""  # of its model
        self._calibrations: dict[ModelSpec, Calibration] = {}  # of a CPU; a GPU's free memory changes
        self._running: dict[str, Call] = {}  # in the engine
        self._wake = threading.Condition()
        self._without_adapter: AdapterQueue[Call] = AdapterQueue(self._notify)
        self._waiting: deque[Call | _Load] = deque()  # these three are shared with callers, under _wake
        self._aborted: set[str] = set()
        self._closed = False
        self.steps = 0  # that the engine has done
        self._lanes_in_use: _TimedLanes | None = None
        self._working_since: float | None = None  # None while it waits, or loads a model, however long that takes
        self._songs_kept = 0  # that ended since memory was given back
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def submit(self, call: Call) -> None:
        """Have a song made: `end` gets its latents, or EngineError, RenderError. From any thread."""
        with self._wake:
            self._waiting.append(call)
            self._wake.notify()

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify()

    def abort(self, call: Call) -> None:
        """Forget a call within one step; nothing happens if it has ended. From any thread."""
        call.end.cancel()
        with self._wake:
            self._aborted.add(call.call_id)
            self._wake.notify()

    def load(self, spec: ModelSpec) -> "Future[None]":
        """Have this model in memory. The future raises CheckpointError; then none is loaded. From any thread."""
        load = _Load(spec, Future())
        with self._wake:
            self._waiting.append(load)
            self._wake.notify()
        return load.loaded

    def close(self) -> None:
        """Stop after the step that runs."""
        with self._wake:
            self._closed = True
            self._wake.notify()

    def busy_for_s(self) -> float:
        """Return how long the longest step takes already that is being done; 0 without any. From any thread."""
        lanes, working_since = self._lanes_in_use, self._working_since
        since = [] if lanes is None else lanes.since()
        since += [] if working_since is None else [working_since]
        return time.monotonic() - min(since) if since else 0.0

    @property
    def is_dead(self) -> bool:
        """Return whether the engine's thread has ended without being closed."""
        return not self._closed and not self._thread.is_alive()

    def describe(self, replica_id: str, gpu_ids: tuple[str, ...]) -> ReplicaState:
        """What is loaded, and where; an empty model is none. From any thread."""
        engine = self._engine
        if engine is None:
            return ReplicaState(replica_id, model="", device="", gpu_ids=gpu_ids)
        precision = str(engine.dtype).removeprefix("torch.")
        device, adapters = describe_device(engine.device), engine.adapters.digests
        return ReplicaState(replica_id, engine.spec.name, device, gpu_ids, precision, adapters, self._latent_space)

    def _work(self) -> None:
        if pick_device(self._device).type == "cpu":
            with suppress(OSError):
                os.nice(ENGINE_NICENESS)  # of this thread and its lanes: those that answer clients go first
        # Ray sets OMP_NUM_THREADS to 1 in its actors. With lanes, it is they that compute.
        torch.set_num_threads(1 if self._lanes().most > 1 else available_cpus())
        keep_freed_memory()
        while self._wait_for_work():
            self._working_since = time.monotonic()
            self._drop_aborted()
            self._begin()
            if self._engine is not None:
                self._without_adapter.advance(self._engine.adapters, self._add, self._fail)
            if self._running:
                before = len(self._running)
                self._step()
                self._note_ended(before - len(self._running))
            self._working_since = None
        self._without_adapter.close()

    def _wait_for_work(self) -> bool:
        """Return whether there is some; False when it is time to stop."""
        with self._wake:
            is_idle = self._songs_kept > 0 and not self._wake.wait_for(self._has_work, IDLE_S)
        if is_idle:
            self._songs_kept = 0
            give_back_freed_memory()
        with self._wake:
            self._wake.wait_for(self._has_work)
            return not self._closed

    def _has_work(self) -> bool:
        if self._closed or self._running or self._aborted or self._without_adapter.has_news:
            return True
        return bool(self._waiting) and self._may_begin(self._waiting[0])

    def _may_begin(self, first: "Call | _Load") -> bool:
        """Whether the engine is idle, or the call is for the model that it has."""
        if not self._running and not self._without_adapter:
            return True
        return isinstance(first, Call) and self._engine is not None and self._engine.spec == first.spec

    def _drop_aborted(self) -> None:
        with self._wake:
            aborted, self._aborted = self._aborted, set()
            self._waiting = deque(
                one for one in self._waiting if not (isinstance(one, Call) and one.call_id in aborted)
            )
        self._without_adapter.drop(aborted)
        for call_id in aborted:
            if self._running.pop(call_id, None) is not None and self._engine is not None:
                self._engine.abort(call_id)

    def _begin(self) -> None:
        """Take in those that wait, up to the first that needs another model while the engine works."""
        while True:
            with self._wake:
                if not self._waiting:
                    return
                first = self._waiting[0]
                if not self._may_begin(first):
                    return
                self._waiting.popleft()
            if isinstance(first, _Load):
                self._do_load(first)
            elif first.params.active_adapter is None:
                self._add(first)
            else:
                self._have_adapter(first)

    def _do_load(self, load: _Load) -> None:
        try:
            self._engine_for(load.spec)
        except Exception as error:  # noqa: BLE001  whatever it is, the one who waits must hear of it
            load.loaded.set_exception(self._judge(error))
        else:
            load.loaded.set_result(None)

    def _have_adapter(self, call: Call) -> None:
        """Let a call wait for its adapter, once its model is there."""
        try:
            self._engine_for(call.spec)
        except Exception as error:  # noqa: BLE001  as above
            self._fail(call, error)
        else:
            self._without_adapter.add(call)

    def _fail(self, call: Call, error: BaseException) -> None:
        """End a call that is not in the engine."""
        if call.end.set_running_or_notify_cancel():
            call.end.set_exception(self._judge(error))

    def _add(self, call: Call) -> None:
        if not call.end.set_running_or_notify_cancel():
            return
        try:
            engine = self._engine_for(call.spec)
            if call.latent_space not in ("", self._latent_space):
                raise LatentSpaceError(
                    "the song to begin from was made by another model, which this one does not understand"
                )
            call.made_in = self._latent_space
            engine.add(call.call_id, call.params, call.inputs, call.priority)
            call.inputs = replace(call.inputs, source=None)  # the engine has it, and lets go of it before the song ends
        except Exception as error:  # noqa: BLE001  as above
            call.end.set_exception(self._judge(error))
        else:
            self._running[call.call_id] = call

    def _step(self) -> None:
        assert self._engine is not None
        try:
            events = self._engine.step()
        except Exception as error:
            logger.exception("a step failed for all %d songs in the engine", len(self._running))
            failure = self._judge(error)
            if len(self._running) > 1 and failure is error:  # nobody knows whose fault it is
                failure = SharedStepError("a step failed that this song shared with others")
            for call in self._running.values():
                self._engine.abort(call.call_id)
                call.end.set_exception(failure)
            self._running.clear()
            return
        self.steps += 1
        for event in events:
            call = self._running[event.request_id]
            match event:
                case Moved():
                    call.on_progress(event.progress)
                case Decoded():
                    call.on_audio(event)
                case Finished():
                    del self._running[event.request_id]
                    call.end.set_result(event)
                case Failed():
                    del self._running[event.request_id]
                    call.end.set_exception(self._judge(event.error))

    def _note_ended(self, songs: int) -> None:
        self._songs_kept += songs
        if self._songs_kept >= SONGS_TO_GIVE_BACK:
            self._songs_kept = 0
            give_back_freed_memory()

    def _lanes(self) -> _TimedLanes:
        return _TimedLanes.for_device(pick_device(self._device), available_cpus())

    def _judge(self, error: BaseException) -> BaseException:
        """What to tell the caller."""
        if isinstance(error, torch.OutOfMemoryError):
            return GpuMemoryError("the song does not fit the GPU's memory: ask for a shorter one")
        if not isinstance(error, EngineError | RenderError) and is_lost(error, pick_device(self._device)):
            logger.error("the GPU is lost, and with it this process, because every later call of CUDA fails: %s", error)
            self._on_gpu_lost()
        return error

    def _engine_for(self, spec: ModelSpec) -> Engine:
        if self._engine is None or self._engine.spec != spec:
            self._working_since = None
            self._engine = None
            gc.collect()
            free_memory()  # two models at once may not fit
            ensure_checkpoint(Path(spec.path), download=spec.path == self._download_to)
            started = time.perf_counter()
            self._latent_space = latent_space_of(Path(spec.path))
            lanes, limits = self._lanes(), self._adapter_limits
            self._lanes_in_use = lanes
            known = self._calibrations.get(spec)
            fits = True
            try:
                self._engine = lanes.call(
                    lambda: Engine.load(spec, self._device, known, adapter_limits=limits, lanes=lanes)
                )
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                fits = False
            if not fits:  # not where it is caught: the error holds what was loaded
                free_memory()
                raise GpuMemoryError("the model does not fit the memory: set `cpu_offload`, or take a smaller model")
            assert self._engine is not None
            if self._engine.device.type == "cpu":
                self._calibrations[spec] = self._engine.calibration
            logger.info(
                "loaded %s from %s on %s in %.1f s; up to %d tokens share a forward",
                *(spec.name, spec.path, self._engine.device),
                *(time.perf_counter() - started, self._engine.calibration.max_tokens),
            )
            self._working_since = time.monotonic()
        return self._engine
