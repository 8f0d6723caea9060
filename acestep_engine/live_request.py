"""A request in the engine, from when it is added to when its song is told, and the units of work that bring it on."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import Tensor

from acestep_engine.batch import Share
from acestep_engine.decode import Decoding, check_finite
from acestep_engine.model.low_rank import WeightedAdapter
from acestep_engine.model.packing import Context
from acestep_engine.params import GenerationParams, Progress, Timings
from acestep_engine.requests import Decoded, Finished, Inputs
from acestep_engine.schedule import Demand
from acestep_engine.tasks.state import TaskState


@dataclass(eq=False)
class LiveRequest:
    """It waits to begin while `task` is None, and is decoded once `decoding` is not."""

    request_id: str
    params: GenerationParams
    inputs: Inputs
    adapter: WeightedAdapter | None
    priority: int
    task: TaskState | None = None
    contexts: Sequence[Context] = ()
    decoding: Decoding | None = None
    began_at: float = 0.0
    denoised_at: float = 0.0
    heard_at: float | None = None  # when its first audio was there
    out_of_memory: int = 0  # times in a row that it did not fit, alone
    too_many: int | None = None  # requests that had begun when it last did not fit: beside so many it pauses

    @property
    def is_denoised(self) -> bool:
        return self.task is not None and self.task.forwards_done == self.task.forwards

    def shares(self) -> list[Share]:
        """What it brings to a forward: queries to the same context side by side."""
        assert self.task is not None
        grouped = groupby(self.task.queries(), key=lambda query: query.context)
        return [Share(tuple(queries), self.contexts[context]) for context, queries in grouped]

    def demand(self, tokens_per_decoded_frame: float, *, held: bool = False) -> Demand:
        """What it asks of the device next; `held` if it may not have it yet."""
        decoding, task = self.decoding, self.task
        if decoding is not None:
            frames = decoding.next_frames, decoding.frames_left
            cost, work = (max(1, round(one * tokens_per_decoded_frame)) for one in frames)
            return Demand(self.request_id, "decode", cost, max(cost, work), self.priority, held)
        assert task is not None
        width = task.latents.shape[-1]
        work = task.rows_left * width + round(width * tokens_per_decoded_frame)
        return Demand(self.request_id, "forward", task.rows * width, work, self.priority, held)

    def diffusion(self) -> Progress:
        """How many of its forwards are done."""
        assert self.task is not None
        return Progress("diffusion", self.task.forwards_done, self.task.forwards)

    def decoding_progress(self) -> Progress:
        """How many of its windows are decoded."""
        assert self.decoding is not None
        return Progress("decoding", self.decoding.windows_done, self.decoding.windows)

    def heard(self, audio: Tensor) -> Decoded:
        """Its next audio (2, n), on the host. Raises NumericalError."""
        assert self.decoding is not None
        check_finite(audio)
        if self.heard_at is None:
            self.heard_at = time.perf_counter()
        return Decoded(self.request_id, audio.numpy(), self.decoding.samples)

    def finished(self, latents: Tensor) -> Finished:
        """Its end, all of its audio heard. `latents` (8, 16, T) are on the host, float32."""
        assert self.heard_at is not None
        timings = Timings(
            diffusion_s=self.denoised_at - self.began_at,
            decode_s=time.perf_counter() - self.denoised_at,
            first_audio_s=self.heard_at - self.denoised_at,
        )
        return Finished(self.request_id, latents.numpy(), timings)


@dataclass(eq=False)
class Unit:
    """A forward that several requests share, or one window of one request's decoding; and what came of it."""

    requests: Sequence[LiveRequest]
    cost: int  # in tokens, of all of them
    advanced: Sequence[TaskState] = ()  # the task of each, a step further
    audio: Tensor | None = None  # what `Decoding.advance` answered
    failure: Exception | None = None

    @property
    def decoding(self) -> Decoding | None:
        return self.requests[0].decoding
