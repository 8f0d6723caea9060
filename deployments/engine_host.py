"""A Generator's loaded model. Blocking: everything here runs in the replica's one engine thread.

It loads torch: `deployments.generator` imports it in the replica only, so that building the application does not.
"""

import dataclasses
import gc
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from acestep_engine.audio import AudioLimits, encode_audio, read_audio
from acestep_engine.conditioning import Conditioning
from acestep_engine.devices import describe_device
from acestep_engine.download import ensure_checkpoint
from acestep_engine.engine import Engine, Song
from acestep_engine.params import OUTPUT_SAMPLE_RATE_HZ, ModelSpec, Progress
from deployments.cpus import available_cpus
from deployments.failures import GpuMemoryError, ReplicaBrokenError
from deployments.messages import ByteArray, Rendered, RenderJob, ReplicaState

logger = logging.getLogger("ray.serve")
T = TypeVar("T")


class EngineHost:
    """`device` None is the GPU if the replica has one. `download_to` may be filled from the published place."""

    def __init__(self, device: str | None, limits: AudioLimits, download_to: str | None) -> None:
        torch.set_num_threads(available_cpus())  # Ray sets OMP_NUM_THREADS to 1 in its actors
        self._device = device
        self._limits = limits
        self._download_to = download_to
        self._engine: Engine | None = None
        self.broken: str | None = None  # why the GPU answers nothing any more

    def load(self, spec: ModelSpec) -> None:
        """Have this model in memory. Raises CheckpointError; then none is loaded."""
        self._guarded(lambda: self._engine_for(spec))

    def render(
        self,
        spec: ModelSpec,
        job: RenderJob,
        conditioning: Conditioning,
        source: ByteArray | None,
        report: Callable[[Progress], None],
        cancelled: Callable[[], bool],
    ) -> Rendered:
        """One song as a file; loads `spec` first if another one is loaded. Raises EngineError, RenderError."""
        return self._guarded(lambda: self._render(spec, job, conditioning, source, report, cancelled))

    def describe(self, replica_id: str, gpu_ids: tuple[str, ...]) -> ReplicaState:
        """What is loaded, and where; an empty model is none. May be called from any thread."""
        engine = self._engine
        if engine is None:
            return ReplicaState(replica_id, model="", device="", gpu_ids=gpu_ids)
        precision = str(engine.dtype).removeprefix("torch.")
        return ReplicaState(replica_id, engine.spec.name, describe_device(engine.device), gpu_ids, precision)

    def _guarded(self, work: Callable[[], T]) -> T:
        """Do `work`, and remember if the GPU is lost: after such an error every later call of CUDA fails as well."""
        try:
            return work()
        except torch.OutOfMemoryError as error:
            raise GpuMemoryError("the song does not fit the GPU's memory: ask for a shorter one") from error
        except RuntimeError as error:
            if isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error):
                self.broken = str(error)
                logger.error("the GPU is lost, this replica will be replaced: %s", error)
                raise ReplicaBrokenError("the GPU is lost") from error
            raise

    def _render(
        self,
        spec: ModelSpec,
        job: RenderJob,
        conditioning: Conditioning,
        source: ByteArray | None,
        report: Callable[[Progress], None],
        cancelled: Callable[[], bool],
    ) -> Rendered:
        engine = self._engine_for(spec)
        report(Progress("encoding"))
        reference = None if source is None else read_audio(source.data, self._limits)

        def sing() -> Song:
            return engine.generate(job.params, conditioning, reference, report, cancelled)

        try:
            song = sing()
        except torch.OutOfMemoryError:
            song = None
        if song is None:  # outside of the handler: its traceback holds the tensors that must be freed
            logger.warning("%s: out of GPU memory, trying once more", job.request_id)
            _free_memory()
            song = sing()
        started = time.perf_counter()
        audio = encode_audio(song.audio, OUTPUT_SAMPLE_RATE_HZ, job.audio_format, job.tags)
        return Rendered(
            audio=np.frombuffer(audio, dtype=np.uint8),
            latents=song.latents,
            duration_s=song.duration_s,
            timings=dataclasses.replace(song.timings, write_s=time.perf_counter() - started),
            model=spec.name,
            device=describe_device(engine.device),
        )

    def _engine_for(self, spec: ModelSpec) -> Engine:
        if self._engine is None or self._engine.spec != spec:
            self._engine = None
            _free_memory()  # two models at once may not fit
            ensure_checkpoint(Path(spec.path), download=spec.path == self._download_to)
            started = time.perf_counter()
            self._engine = Engine.load(spec, self._device)
            seconds = time.perf_counter() - started
            logger.info("loaded %s from %s on %s in %.1f s", spec.name, spec.path, self._engine.device, seconds)
        return self._engine


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
