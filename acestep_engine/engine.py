"""The loop that makes songs: many requests at once, which join and leave between any two forwards."""

import itertools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from acestep_engine import tasks
from acestep_engine.adapters import AdapterLoader, AdapterShelf
from acestep_engine.audio import SourceAudio
from acestep_engine.batch import Batch
from acestep_engine.calibrate import (
    Calibration,
    compiling_pays,
    graphed_transformer,
    measure_decoding,
    measure_forwards,
)
from acestep_engine.checkpoint import TRANSFORMER, check_folder
from acestep_engine.context import ContextBuilder
from acestep_engine.decode import OVERLAPPED_OVER_S, Decoding, check_latents
from acestep_engine.devices import Pacer, free_memory, pick_device, pick_dtype
from acestep_engine.errors import Cancelled, EngineError, ParameterError
from acestep_engine.live_request import LiveRequest
from acestep_engine.model.autoencoder import MusicAutoencoder
from acestep_engine.model.packing import Context
from acestep_engine.model.transformer import Transformer
from acestep_engine.offload import Residency
from acestep_engine.params import (
    MAX_DURATION_S,
    AdapterLimits,
    GenerationParams,
    ModelSpec,
    Progress,
    latent_frames,
)
from acestep_engine.requests import Event, Failed, Finished, Inputs, Latents, Moved, Song, songs_of
from acestep_engine.schedule import Demand, Scheduler
from acestep_engine.tasks.state import TaskState

UNBOUNDED = sys.maxsize
DEFAULT_ADAPTER_LIMITS = AdapterLimits()
ATTEMPTS_ALONE = 2  # of a unit that runs out of memory although nobody shares it


class Engine:
    """A loaded checkpoint and the requests it works on. Use it from one thread at a time.

    Each `step` does one unit of work, which the scheduler chooses: a forward that several requests share, or one window
    of one song's decoding. A request's music does not depend on who shares its forwards.
    """

    def __init__(
        self,
        spec: ModelSpec,
        transformer: Transformer,
        autoencoder: MusicAutoencoder,
        device: torch.device,
        calibration: Calibration | None = None,
        adapter_limits: AdapterLimits = DEFAULT_ADAPTER_LIMITS,
    ) -> None:
        """`calibration` None measures this device, which takes some forwards and warms it up."""
        self.spec = spec
        self.transformer = transformer
        self.autoencoder = autoencoder
        self.device = device
        self.dtype = pick_dtype(spec.precision, device)
        self._residency = Residency(device, enabled=spec.cpu_offload)
        self.batch = Batch(transformer, device, self.dtype)
        self.contexts = ContextBuilder(transformer, device, self.dtype)
        loader = AdapterLoader(transformer.config, device, self.dtype)
        self.adapters = AdapterShelf(loader, adapter_limits, self._adapters_in_use)
        if spec.torch_compile or (spec.torch_compile is None and self._compiling_pays()):
            transformer.compile_blocks()
        self.calibration = calibration or self._measure()
        self.scheduler = Scheduler(self.calibration.max_tokens)
        if device.type == "cuda" and spec.cuda_graphs is not False and not spec.cpu_offload:
            self.batch.graphed = graphed_transformer(self.batch, device, spec.cuda_graphs, self.calibration.max_tokens)
        self._pacer = Pacer(device)
        self._requests: dict[str, LiveRequest] = {}  # in order of arrival
        self._most_begun = UNBOUNDED  # requests at a time, since one found no memory beside so many

    @classmethod
    def load(
        cls,
        spec: ModelSpec,
        device: str | None = None,
        calibration: Calibration | None = None,
        adapter_limits: AdapterLimits = DEFAULT_ADAPTER_LIMITS,
    ) -> Self:
        """From a checkpoint folder, strictly. Raises CheckpointError naming the file or tensor that does not fit."""
        folder = Path(spec.path)
        check_folder(folder)
        target = pick_device(device)
        dtype = pick_dtype(spec.precision, target)
        home = torch.device("cpu") if spec.cpu_offload else target
        transformer = Transformer.load(folder / TRANSFORMER, home, dtype)
        autoencoder = MusicAutoencoder.load(folder, home, dtype)
        return cls(spec, transformer, autoencoder, target, calibration, adapter_limits)

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
        """Forget a request, if there is one of that id; what it held is free at once."""
        self._requests.pop(request_id, None)
        self.batch.forget_packings()

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Do one unit of work, and tell what came of it. Nothing to do is an empty list.

        Whatever goes wrong with single requests is told as Failed. Raises only what concerns all: a lost device.
        """
        events = self._begin_waiting()
        demands = self._demands()
        if not demands:
            return events
        ids = self.scheduler.choose(demands)
        chosen = [self._requests[request_id] for request_id in ids]
        self._pacer.wait()
        failure: RuntimeError | None = None
        try:
            events += self._decode(chosen[0]) if chosen[0].decoding is not None else self._forward(chosen)
        except torch.AcceleratorError:
            raise
        except RuntimeError as error:
            failure = error.with_traceback(None)  # it holds the tensors of this unit
        else:
            for request in chosen:
                request.out_of_memory = 0
        if failure is not None:
            cost = sum(demand.cost for demand in demands if demand.request_id in ids)
            events += self._recover(chosen, failure, cost)
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
        """Begin those that wait; after one whose source had to be encoded, others get their turn.

        One that finds no memory beside others waits, and all behind it, until there are fewer of them.
        """
        events: list[Event] = []
        waiting = [request for request in self._requests.values() if request.task is None]
        begun = len(self._requests) - len(waiting)
        if begun == 0:
            self._most_begun = UNBOUNDED
        for request in waiting:
            if begun >= self._most_begun:
                break
            failure = self._try_to_begin(request)
            if isinstance(failure, torch.OutOfMemoryError) and begun > 0:
                self._most_begun = begun
                free_memory()
                break
            if failure is not None:
                del self._requests[request.request_id]
                events.append(Failed(request.request_id, failure))
                continue
            begun += 1
            events += self._report([request])
            if request.inputs.source is not None:
                break
        return events

    def _try_to_begin(self, request: LiveRequest) -> Exception | None:
        """What went wrong with this request, if anything did."""
        try:
            self._begin(request)
        except torch.AcceleratorError:
            raise
        except (EngineError, RuntimeError, IndexError) as error:  # also of conditioning that does not fit the model
            return error.with_traceback(None)
        return None

    def _begin(self, request: LiveRequest) -> None:
        request.began_at = time.perf_counter()
        source = request.inputs.source
        latents = self._encode_source(source) if isinstance(source, SourceAudio) else _known_latents(source)
        task = tasks.begin(request.params, latents, self.device, self.dtype)
        with self._residency.use(self.transformer):
            request.contexts = self._build_contexts(request)
        request.task = task

    def _build_contexts(self, request: LiveRequest) -> list[Context]:
        """Those that the task's queries count."""
        params, inputs, adapter = request.params, request.inputs, request.adapter
        if params.task != "edit":
            return [self.contexts.build(params, inputs.conditioning, adapter)]
        if inputs.target is None:
            raise ParameterError("edit_target_prompt", "is missing")
        kinds = (True, False) if params.guided else (True,)
        wanted = itertools.product(kinds, (inputs.conditioning, inputs.target))
        return [self.contexts.build_apart(one, adapter, conditioned=conditioned) for conditioned, one in wanted]

    def _encode_source(self, source: SourceAudio) -> Tensor:
        """Latents (8, 16, T) of the source; what is past the longest song is left out."""
        samples = source.samples[:, : int(MAX_DURATION_S * source.sample_rate_hz)]
        with self._residency.use(self.autoencoder):
            return self.autoencoder.encode(torch.tensor(samples), source.sample_rate_hz)

    def _demands(self) -> list[Demand]:
        """What everybody asks for, in order of arrival."""
        begun = [request for request in self._requests.values() if request.task is not None]
        if self._residency.enabled and any(request.decoding is not None for request in begun):
            # A song that is being decoded is finished first: moving the models to and fro costs more than a song.
            begun = [request for request in begun if request.decoding is not None]
        return [self._demand(request) for request in begun]

    def _demand(self, request: LiveRequest) -> Demand:
        per_frame = self.calibration.tokens_per_decoded_frame
        decoding, task = request.decoding, request.task
        if decoding is not None:
            cost, work = (max(1, round(frames * per_frame)) for frames in (decoding.next_frames, decoding.frames_left))
            return Demand(request.request_id, "decode", cost, max(cost, work), request.priority)
        assert task is not None
        frames = task.latents.shape[-1]
        cost = len(task.queries()) * frames
        work = task.rows_left * frames + round(frames * per_frame)
        return Demand(request.request_id, "forward", cost, work, request.priority)

    def _forward(self, requests: Sequence[LiveRequest]) -> list[Event]:
        with self._residency.use(self.transformer):
            shares = [request.shares() for request in requests]
            velocities = iter(self.batch.forward([share for of_one in shares for share in of_one]))
        advanced = []
        for request, of_one in zip(requests, shares, strict=True):
            assert request.task is not None
            advanced.append(request.task.advance([velocity for _ in of_one for velocity in next(velocities)]))
        for request, task in zip(requests, advanced, strict=True):  # all of them, or none if anything failed
            request.task = task
        return self._report(requests)

    def _report(self, requests: Sequence[LiveRequest]) -> list[Event]:
        """Tell how far they are, and begin to decode those that are through."""
        events: list[Event] = []
        for request in requests:
            task = request.task
            assert task is not None
            events.append(Moved(request.request_id, request.diffusion()))
            if task.forwards_done == task.forwards:
                events += self._begin_decoding(request, task)
        return events

    def _begin_decoding(self, request: LiveRequest, task: TaskState) -> list[Event]:
        request.denoised_at = time.perf_counter()
        overlapped = self.spec.overlapped_decode and request.params.duration_s > OVERLAPPED_OVER_S
        try:
            with self._residency.use(self.autoencoder):
                request.decoding = Decoding(self.autoencoder, task.latents, overlapped=overlapped)
        except (EngineError, torch.OutOfMemoryError) as error:
            self.abort(request.request_id)
            return [Failed(request.request_id, error.with_traceback(None))]
        request.contexts = ()  # their keys and values are not needed any more
        self.batch.forget_packings()
        return [Moved(request.request_id, request.decoding_progress())]

    def _decode(self, request: LiveRequest) -> list[Event]:
        decoding, task = request.decoding, request.task
        assert decoding is not None
        assert task is not None
        with self._residency.use(self.autoencoder):
            audio = decoding.advance()
        events: list[Event] = [Moved(request.request_id, request.decoding_progress())]
        try:  # past this window, which cannot be tried again
            if audio is not None:
                events.append(request.heard(audio.cpu()))
            if decoding.windows_done == decoding.windows:
                events.append(request.finished(task.latents.float().cpu()))
                del self._requests[request.request_id]
        except (EngineError, torch.OutOfMemoryError) as error:
            self.abort(request.request_id)
            return [Failed(request.request_id, error.with_traceback(None))]
        return events

    def _recover(self, requests: Sequence[LiveRequest], failure: RuntimeError, cost: int) -> list[Event]:
        """After a unit that failed and changed nothing: have it done in smaller parts, or give up the one it was of."""
        self.batch.forget_packings()
        exhausted = isinstance(failure, torch.OutOfMemoryError)
        if exhausted:
            free_memory()
        if len(requests) > 1:
            if exhausted:
                while self.scheduler.max_tokens >= cost and self.scheduler.shrink():
                    pass
                return []
            return [event for request in requests for event in self._retry_alone(request)]
        request = requests[0]
        request.out_of_memory += 1
        if exhausted and request.out_of_memory < ATTEMPTS_ALONE:
            return []
        self.abort(request.request_id)
        return [Failed(request.request_id, failure)]

    def _retry_alone(self, request: LiveRequest) -> list[Event]:
        """The forward of one of those whose shared forward failed, so that only whose fault it was fails."""
        try:
            return self._forward([request])
        except torch.AcceleratorError:
            raise
        except RuntimeError as error:
            failure = error.with_traceback(None)
        return self._recover([request], failure, 0)

    def _compiling_pays(self) -> bool:
        """On a GPU by a trial; a CPU would take minutes to find out."""
        if self.device.type == "cpu":
            return False
        with self._residency.use(self.transformer):
            return compiling_pays(self.batch, self.device)

    def _measure(self) -> Calibration:
        with self._residency.use(self.transformer):
            max_tokens, token_s = measure_forwards(self.batch, self.device)
        with self._residency.use(self.autoencoder):
            return Calibration(max_tokens, measure_decoding(self.autoencoder, self.device) / token_s)


def _known_latents(source: Latents | None) -> Tensor | None:
    """Raises LatentShapeError, NumericalError."""
    if source is None:
        return None
    latents = torch.tensor(source)
    check_latents(latents)
    return latents[..., : latent_frames(MAX_DURATION_S)]
