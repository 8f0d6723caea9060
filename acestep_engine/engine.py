"""The loop that makes a song: conditioning and parameters in, latents and audio out."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from acestep_engine import tasks
from acestep_engine.audio import SourceAudio
from acestep_engine.checkpoint import TRANSFORMER, check_folder
from acestep_engine.conditioning import Conditioning
from acestep_engine.decode import OVERLAPPED_OVER_S, decode_latents
from acestep_engine.devices import pick_device, pick_dtype
from acestep_engine.errors import Cancelled
from acestep_engine.model.autoencoder import MusicAutoencoder
from acestep_engine.model.transformer import Context, Transformer
from acestep_engine.offload import Residency
from acestep_engine.params import (
    MAX_DURATION_S,
    OUTPUT_SAMPLE_RATE_HZ,
    GenerationParams,
    ModelSpec,
    Progress,
    Timings,
)
from acestep_engine.tasks import TaskState

ProgressSink = Callable[[Progress], None]


@dataclass(frozen=True)
class Song:
    """`latents` (8, 16, T) and `audio` (2, N) at 48 kHz, both float32."""

    latents: npt.NDArray[np.float32]
    audio: npt.NDArray[np.float32]
    timings: Timings

    @property
    def duration_s(self) -> float:
        return float(self.audio.shape[1] / OUTPUT_SAMPLE_RATE_HZ)


class Engine:
    """A loaded checkpoint. Use it from one thread at a time."""

    def __init__(self, spec: ModelSpec, transformer: Transformer, autoencoder: MusicAutoencoder, device: torch.device):
        self.spec = spec
        self.transformer = transformer
        self.autoencoder = autoencoder
        self.device = device
        self.dtype = pick_dtype(spec.precision, device)
        self._residency = Residency(device, enabled=spec.cpu_offload)
        if spec.torch_compile:
            transformer.compile_blocks()

    @classmethod
    def load(cls, spec: ModelSpec, device: str | None = None) -> Self:
        """From a checkpoint folder, strictly. Raises CheckpointError naming the file or tensor that does not fit."""
        folder = Path(spec.path)
        check_folder(folder)
        target = pick_device(device)
        dtype = pick_dtype(spec.precision, target)
        home = torch.device("cpu") if spec.cpu_offload else target
        transformer = Transformer.load(folder / TRANSFORMER, home, dtype)
        return cls(spec, transformer, MusicAutoencoder.load(folder, home, dtype), target)

    @torch.inference_mode()
    def generate(
        self,
        params: GenerationParams,
        conditioning: Conditioning,
        source: SourceAudio | None = None,
        on_progress: ProgressSink = lambda progress: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Song:
        """Make one song. `on_progress` is called before the first forward and after each.

        Raises Cancelled within one forward of `cancelled()` turning true, NumericalError if the model answers NaN or
        infinity, ParameterError for a task that is not built.
        """
        started = time.perf_counter()
        reference = None if source is None else self._encode_source(source)
        latents = self._denoise(params, conditioning, reference, on_progress, cancelled)
        denoised = time.perf_counter()
        if cancelled():
            raise Cancelled
        on_progress(Progress("decoding"))
        audio = self._decode(latents, params.duration_s)
        timings = Timings(denoised - started, time.perf_counter() - denoised)
        return Song(latents.float().cpu().numpy(), audio.cpu().numpy(), timings)

    def _encode_source(self, source: SourceAudio) -> Tensor:
        """Latents (8, 16, T) of the source; what is past the longest song is left out."""
        samples = source.samples[:, : int(MAX_DURATION_S * source.sample_rate_hz)]
        with self._residency.use(self.autoencoder):
            return self.autoencoder.encode(torch.tensor(samples), source.sample_rate_hz)

    def _denoise(
        self,
        params: GenerationParams,
        conditioning: Conditioning,
        reference: Tensor | None,
        on_progress: ProgressSink,
        cancelled: Callable[[], bool],
    ) -> Tensor:
        """Latents (8, 16, T) of the finished song."""
        task = tasks.begin(params, reference, self.device, self.dtype)
        with self._residency.use(self.transformer):
            context = self._prepare_context(params, conditioning)
            on_progress(Progress("diffusion", 0, task.forwards))
            while task.forwards_done < task.forwards:
                if cancelled():
                    raise Cancelled
                task = self._step(task, context)
                on_progress(Progress("diffusion", task.forwards_done, task.forwards))
        return task.latents

    def _step(self, task: TaskState, context: Context) -> TaskState:
        """One forward of all the rows a task asks for."""
        queries = task.queries()
        latents = torch.stack([query.latents for query in queries])  # (R, 8, 16, T)
        timesteps = torch.tensor([query.timestep for query in queries], device=self.device)
        scale = None
        if any(query.query_scale != 1.0 for query in queries):
            scale = torch.tensor([query.query_scale for query in queries], device=self.device, dtype=self.dtype)
        velocities = self.transformer(latents, timesteps, context.first_rows(len(queries)), query_scale=scale)
        return task.advance(velocities.unbind(0))

    def _prepare_context(self, params: GenerationParams, conditioning: Conditioning) -> Context:
        """The rows a request is guided between: conditioned, unconditioned, and text only for double guidance.

        Unconditioned is nothing at all, or with `use_erg_lyric` the same prompt and lyrics weakly attended to.
        """
        text = torch.tensor(conditioning.text).to(self.device, self.dtype)  # (L, C)
        lyric_ids = torch.tensor(conditioning.lyric_ids).to(self.device)  # (N,)
        weak = params.use_erg_lyric
        texts, lyrics, scales = [text], [lyric_ids], [1.0]
        if params.guided:
            nothing = torch.zeros_like(text)
            if weak and conditioning.text_weakened is not None:
                nothing = torch.tensor(conditioning.text_weakened).to(self.device, self.dtype)
            texts.append(nothing)
            if params.double_guided:
                texts.append(text)
            without = lyric_ids if weak else torch.zeros_like(lyric_ids)
            lyrics += [without] * (len(texts) - 1)
            scales += [tasks.ERG_QUERY_SCALE if weak else 1.0] * (len(texts) - 1)
        rows = len(texts)
        hidden, mask = self.transformer.encode_context(
            torch.stack(texts),
            torch.ones(rows, len(text), device=self.device, dtype=torch.long),
            torch.zeros(rows, self.transformer.config.speaker_embedding_dim, device=self.device, dtype=self.dtype),
            torch.stack(lyrics),
            torch.tensor(conditioning.lyric_mask).to(self.device).expand(rows, -1),
            torch.tensor(scales, device=self.device, dtype=self.dtype) if weak else None,
        )
        return self.transformer.prepare_context(hidden, mask)

    def _decode(self, latents: Tensor, duration_s: float) -> Tensor:
        overlapped = self.spec.overlapped_decode and duration_s > OVERLAPPED_OVER_S
        with self._residency.use(self.autoencoder):
            return decode_latents(self.autoencoder, latents, overlapped=overlapped)
