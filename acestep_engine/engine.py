"""The loop that makes songs: many requests at once, which join and leave between any two forwards."""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from acestep_engine.adapters import AdapterLoader, AdapterShelf
from acestep_engine.audio import SourceAudio
from acestep_engine.batch import Batch
from acestep_engine.begin import Beginner
from acestep_engine.calibrate import (
    Calibration,
    compiling_pays,
    graphed_transformer,
    measure,
)
from acestep_engine.checkpoint import TRANSFORMER, check_folder
from acestep_engine.context import ContextBuilder
from acestep_engine.decode import OVERLAPPED_OVER_S, Decoding
from acestep_engine.devices import (
    Pacer,
    as_out_of_memory,
    free_memory,
    is_lost,
    is_out_of_memory,
    pick_device,
    pick_dtype,
)
from acestep_engine.errors import Cancelled, EngineError
from acestep_engine.lanes import Lanes
from acestep_engine.live_request import LiveRequest, Unit
from acestep_engine.model.autoencoder import MusicAutoencoder
from acestep_engine.model.transformer import Transformer
from acestep_engine.offload import Residency
from acestep_engine.params import AdapterLimits, GenerationParams, ModelSpec, Progress
from acestep_engine.requests import Event, Failed, Finished, Inputs, Moved, Song, songs_of
from acestep_engine.room import Room, is_paused
from acestep_engine.schedule import Demand, Scheduler
from acestep_engine.tasks.state import TaskState

logger = logging.getLogger(__name__)

DEFAULT_ADAPTER_LIMITS = AdapterLimits()
ATTEMPTS_ALONE = 2  # of what runs out of memory although nobody shares it, before it waits for others to leave


class Engine:
    """A loaded checkpoint and the requests it works on. Use it from one thread at a time.

    Each `step` does one unit of work, which the scheduler chooses: a forward that several requests share, or one window
    of one song's decoding. Where there are several lanes, units of other requests run beside it. A request's music does
    not depend on who shares its forwards.
    """

    def __init__(
        self,
        spec: ModelSpec,
        transformer: Transformer,
        autoencoder: MusicAutoencoder,
        device: torch.device,
        calibration: Calibration | None = None,
        adapter_limits: AdapterLimits = DEFAULT_ADAPTER_LIMITS,
        lanes: Lanes[Unit] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """`calibration` None measures this device, which takes some forwards and warms it up.

        `lanes` None is one; several are for a CPU, and of this engine alone. `dtype` None is that of the spec.
        """
        self.spec = spec
        self.transformer = transformer
        self.autoencoder = autoencoder
        self.device = device
        self.dtype = dtype or pick_dtype(spec.precision, device)
        self._residency = Residency(device, enabled=spec.cpu_offload)
        self.batch = Batch(transformer, device, self.dtype)
        self.contexts = ContextBuilder(transformer, device, self.dtype)
        self._beginner = Beginner(transformer, autoencoder, self.contexts, self._residency, device)
        loader = AdapterLoader(transformer.config, device, self.dtype)
        self.adapters = AdapterShelf(loader, adapter_limits, self._adapters_in_use)
        if spec.torch_compile or (spec.torch_compile is None and self._compiling_pays()):
            transformer.compile_blocks()
        self.calibration = calibration or measure(self.batch, autoencoder, self._residency)
        self.scheduler = Scheduler(self.calibration.max_tokens)
        if device.type == "cuda" and spec.cuda_graphs is not False and not spec.cpu_offload:
            self.batch.graphed = graphed_transformer(self.batch, device, spec.cuda_graphs, self.calibration.max_tokens)
        self._pacer = Pacer(device)
        self._lanes: Lanes[Unit] = lanes or Lanes()
        self._running: dict[str, Demand] = {}  # of those in a unit that runs, or that ran and is not settled
        self._requests: dict[str, LiveRequest] = {}  # in order of arrival
        self._room = Room()

    @classmethod
    def load(
        cls,
        spec: ModelSpec,
        device: str | None = None,
        calibration: Calibration | None = None,
        adapter_limits: AdapterLimits = DEFAULT_ADAPTER_LIMITS,
        lanes: Lanes[Unit] | None = None,
    ) -> Self:
        """From a checkpoint folder, strictly. Raises CheckpointError naming the file or tensor that does not fit.

        Where the precision is `auto` and bfloat16 fails on the device, the model runs in float32.
        """
        check_folder(Path(spec.path))
        target = pick_device(device)
        dtype = pick_dtype(spec.precision, target)
        load_in = partial(cls._load_in, spec, target, calibration, adapter_limits, lanes)
        try:
            return load_in(dtype)
        except RuntimeError as error:
            if dtype == torch.float32 or spec.precision != "auto" or is_out_of_memory(error) or is_lost(error, target):
                raise
            failure = str(error)  # not the error, which holds the model
        free_memory()
        logger.warning("the model does not run in %s here, and runs in float32: %s", dtype, failure)
        return load_in(torch.float32)

    @classmethod
    def _load_in(
        cls,
        spec: ModelSpec,
        device: torch.device,
        calibration: Calibration | None,
        adapter_limits: AdapterLimits,
        lanes: Lanes[Unit] | None,
        dtype: torch.dtype,
    ) -> Self:
        folder, home = Path(spec.path), torch.device("cpu") if spec.cpu_offload else device
        transformer = Transformer.load(folder / TRANSFORMER, home, dtype)
        autoencoder = MusicAutoencoder.load(folder, home, dtype)
        return cls(spec, transformer, autoencoder, device, calibration, adapter_limits, lanes, dtype)

    @property
    def busy(self) -> bool:
        return bool(self._requests)

    def add(
        self,
        request_id: str,
        params: GenerationParams,
        inputs: Inputs,
        priority: int = 0,
    ) -> None:
        """Take a request in; the next `step` begins it. A higher `priority` runs first.

        Raises ValueError for an id in use, AdapterNotLoadedError for an adapter that is not on the device.
        """
        if request_id in self._requests:
            raise ValueError(f"there is a request {request_id!r} already")
        adapter = self.adapters.weighted(params.active_adapter)
        self._requests[request_id] = LiveRequest(request_id, params, inputs, adapter, priority)

    def abort(self, request_id: str) -> None:
        """Forget a request, if there is one of that id. What it held is free at once, or when its unit is done."""
        self._requests.pop(request_id, None)
        self.batch.forget_packings()

    def step(self) -> list[Event]:
        """Do one unit of work, and tell what came of it. Nothing to do is an empty list.

        With several lanes: have each of them do a unit, and tell what came of the first that are done.
        Whatever goes wrong with single requests is told as Failed. Raises only what concerns all: a lost device.
        """
        events = self._begin_waiting()
        self._lanes.start([partial(self._run, unit) for unit in self._next_units()])
        done = self._lanes.finished()
        for unit in done:
            for request in unit.requests:
                del self._running[request.request_id]
        for unit in done:
            events += self._lanes.call(partial(self._settle, unit))
        return events

    def generate(
        self,
        params: GenerationParams,
        inputs: Inputs,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Song:
        """Make one song and nothing else. `on_progress` is called before the first forward and after each.

        The request's adapter is loaded first, if it is not on the device.

        Raises Cancelled within one forward of `cancelled()` turning true, NumericalError if the model answers NaN or
        infinity, ParameterError for a source that is missing or does not suit, AdapterError.
        """
        if self.busy:
            raise ValueError(f"there are {len(self._requests)} requests in the engine already")
        if params.active_adapter is not None:
            self.adapters.fetch(params.active_adapter)
        told: list[Event] = []
        self.add("", params, inputs)
        try:
            while not cancelled():
                for event in self.step():
                    told.append(event)
                    match event:
                        case Moved(progress=progress):
                            on_progress(progress)
                        case Finished():
                            return songs_of(told)[""]
                        case Failed(error=error):
                            raise error
            raise Cancelled
        finally:
            self.abort("")

    def _adapters_in_use(self) -> set[str]:
        weighted = (request.adapter for request in self._requests.values())
        return {one.adapter.digest for one in weighted if one is not None}

    def _begin_waiting(self) -> list[Event]:
        """Begin those that wait, the most urgent first; of those whose source is to be encoded one a step.

        One that finds no memory beside others waits, and all behind it, until there are fewer of them.
        """
        begun = self._begun()
        self._room.note(begun)
        # Those that paused after their last forward, and need not any more.
        through = [one for one in begun if one.is_denoised and one.decoding is None and not is_paused(one, len(begun))]
        events = [event for one in through for event in self._lanes.call(partial(self._begin_decoding, one))]
        if self._is_decoding_only(begun):
            return events
        encoded = False
        waiting = [request for request in self._requests.values() if request.task is None]
        for request in sorted(waiting, key=lambda request: -request.priority):
            if not self._room.has_place(begun):
                break
            encodes = isinstance(request.inputs.source, SourceAudio)
            if encodes and encoded:
                continue
            encoded |= encodes
            failure = self._try_to_begin(request)
            if isinstance(failure, torch.OutOfMemoryError):
                if begun:
                    self._room.was_too_small(len(begun))
                    break
                failure = self._try_to_begin(request)  # all that can be has been freed
            if failure is not None:
                del self._requests[request.request_id]
                events.append(Failed(request.request_id, failure))
                continue
            events += self._report([request])
            begun = self._begun()
        self._room.note(begun)
        return events

    def _begun(self) -> list[LiveRequest]:
        return [request for request in self._requests.values() if request.task is not None]

    def _is_decoding_only(self, begun: Sequence[LiveRequest]) -> bool:
        """With offload, a song that is being decoded is finished first: moving the models to and fro costs more."""
        decoding = (one for one in begun if one.decoding is not None and not is_paused(one, len(begun)))
        return self._residency.enabled and any(decoding)

    def _try_to_begin(self, request: LiveRequest) -> Exception | None:
        """What went wrong with this request, if anything did."""
        try:
            self._lanes.call(partial(self._beginner.begin, request))
        except EngineError as error:
            return error.with_traceback(None)
        except (RuntimeError, IndexError) as error:  # also of conditioning that does not fit the model
            if is_lost(error, self.device):
                raise
            failure = as_out_of_memory(error).with_traceback(None)
        else:
            return None
        if isinstance(failure, torch.OutOfMemoryError):
            self._free_memory()
        return failure

    def _next_units(self) -> list[Unit]:
        """For the lanes that have none."""
        units: list[Unit] = []
        while self._lanes.running + len(units) < self._lanes.most and (demands := self._demands()):
            ids = self.scheduler.choose(demands, self._running.keys(), self._lanes.most)
            if not ids:
                break
            chosen = {demand.request_id: demand for demand in demands if demand.request_id in ids}
            self._running |= chosen
            cost = sum(demand.cost for demand in chosen.values())
            units.append(Unit([self._requests[request_id] for request_id in ids], cost))
        return units

    def _demands(self) -> list[Demand]:
        """What everybody asks for, in order of arrival."""
        begun = self._begun()
        decoding_only = self._is_decoding_only(begun)
        per_frame = self.calibration.tokens_per_decoded_frame
        demands = []
        for one in begun:
            held = is_paused(one, len(begun)) or (decoding_only and one.decoding is None)
            if not one.is_denoised or one.decoding is not None:
                demands.append(self._running.get(one.request_id) or one.demand(per_frame, held=held))
        return demands

    @torch.inference_mode()
    def _run(self, unit: Unit) -> Unit:
        """In a lane: nothing is read or changed but the unit, its requests, and what is safe between threads."""
        try:
            self._pacer.wait()
            if unit.decoding is None:
                unit.advanced = self._forward(unit.requests)
            else:
                with self._residency.use(self.autoencoder):
                    unit.audio = unit.decoding.advance()
        except Exception as error:  # noqa: BLE001  it is told, or raised, when the unit is settled
            unit.failure = as_out_of_memory(error)
        return unit

    @torch.inference_mode()
    def _settle(self, unit: Unit) -> list[Event]:
        """Take in what came of a unit, but for those that were aborted meanwhile."""
        requests = [one for one in unit.requests if self._requests.get(one.request_id) is one]
        failure = unit.failure
        if failure is not None:
            if not isinstance(failure, RuntimeError) or is_lost(failure, self.device):
                raise failure
            return self._recover(unit, requests, failure.with_traceback(None))  # it holds the tensors of this unit
        for request in requests:
            request.out_of_memory, request.too_many = 0, None
        if unit.decoding is not None:
            return [event for request in requests for event in self._heard(request, unit.decoding, unit.audio)]
        for request, task in zip(unit.requests, unit.advanced, strict=True):
            request.task = task
        return self._report(requests)

    def _forward(self, requests: Sequence[LiveRequest]) -> list[TaskState]:
        """The tasks of these requests, a step further."""
        with self._residency.use(self.transformer):
            shares = [request.shares() for request in requests]
            velocities = iter(self.batch.forward([share for of_one in shares for share in of_one]))
        advanced = []
        for request, of_one in zip(requests, shares, strict=True):
            assert request.task is not None
            advanced.append(request.task.advance([velocity for _ in of_one for velocity in next(velocities)]))
        return advanced

    def _report(self, requests: Sequence[LiveRequest]) -> list[Event]:
        """Tell how far they are, and begin to decode those that are through."""
        events: list[Event] = []
        for request in requests:
            events.append(Moved(request.request_id, request.diffusion()))
            if request.is_denoised:
                request.denoised_at = time.perf_counter()
                request.contexts = ()  # their keys and values are not needed any more
                self.batch.forget_packings()
                events += self._begin_decoding(request)
        return events

    @torch.inference_mode()
    def _begin_decoding(self, request: LiveRequest) -> list[Event]:
        assert request.task is not None
        overlapped = self.spec.overlapped_decode and request.params.duration_s > OVERLAPPED_OVER_S
        for _ in range(ATTEMPTS_ALONE):
            try:
                with self._residency.use(self.autoencoder):
                    request.decoding = Decoding(self.autoencoder, request.task.latents, overlapped=overlapped)
                return [Moved(request.request_id, request.decoding_progress())]
            except EngineError as error:
                return self._give_up(request, error.with_traceback(None))
            except RuntimeError as error:
                if is_lost(error, self.device):
                    raise
                failure = as_out_of_memory(error).with_traceback(None)
            if not isinstance(failure, torch.OutOfMemoryError):
                break
            self._free_memory()
        return self._give_up(request, failure)

    def _heard(self, request: LiveRequest, decoding: Decoding, audio: Tensor | None) -> list[Event]:
        """Tell what a window answered, and the end after the last."""
        assert request.task is not None
        events: list[Event] = [Moved(request.request_id, request.decoding_progress())]
        try:  # past this window, which cannot be tried again
            if audio is not None:
                events.append(request.heard(audio.cpu()))
            if decoding.windows_done == decoding.windows:
                events.append(request.finished(request.task.latents.cpu()))
                del self._requests[request.request_id]
        except (EngineError, torch.OutOfMemoryError) as error:
            self.abort(request.request_id)
            return [Failed(request.request_id, error.with_traceback(None))]
        return events

    def _recover(self, unit: Unit, requests: Sequence[LiveRequest], failure: RuntimeError) -> list[Event]:
        """After a unit that failed and changed nothing: have it done in smaller parts, or give up the one it was of."""
        self.batch.forget_packings()
        exhausted = isinstance(failure, torch.OutOfMemoryError)
        if exhausted:
            self._free_memory()
        if len(unit.requests) == 1:
            return [event for request in requests for event in self._try_again_or_give_up(request, failure)]
        if exhausted:
            while self.scheduler.max_tokens >= unit.cost and self.scheduler.shrink():
                pass
            return []
        return [event for request in requests for event in self._retry_alone(request)]

    def _try_again_or_give_up(self, request: LiveRequest, failure: RuntimeError) -> list[Event]:
        """After its own unit failed; memory may be short for a moment only."""
        request.out_of_memory += 1
        if isinstance(failure, torch.OutOfMemoryError) and request.out_of_memory < ATTEMPTS_ALONE:
            return []
        return self._give_up(request, failure)

    def _give_up(self, request: LiveRequest, failure: Exception) -> list[Event]:
        """Unless it only needs the memory of others: then it waits for one of them to leave."""
        if isinstance(failure, torch.OutOfMemoryError) and self._room.pause(request, self._begun()):
            request.out_of_memory = 0
            return []
        self.abort(request.request_id)
        return [Failed(request.request_id, failure)]

    def _free_memory(self) -> None:
        """Give back what no request needs now: every cache on the device, too."""
        self.batch.free()
        self.contexts.free()
        self.autoencoder.free()
        self.adapters.clear_unused()
        free_memory()

    def _retry_alone(self, request: LiveRequest) -> list[Event]:
        """The forward of one of those whose shared forward failed, so that only whose fault it was fails."""
        return self._settle(self._run(Unit([request], 0)))

    def _compiling_pays(self) -> bool:
        """On a GPU by a trial; a CPU would take minutes to find out."""
        if self.device.type == "cpu":
            return False
        with self._residency.use(self.transformer):
            return compiling_pays(self.batch, self.device)
