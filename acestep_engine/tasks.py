"""What a request asks of the model at each forward, and what it does with the answers.

A task is a value: `queries` says which rows it needs in the next forward, `advance` takes their velocities and answers
the next value. The engine knows nothing else of a task, so that requests of different tasks can share a forward pass.
Retake, repaint, extend and edit are further classes of this shape: other first latents, other rows, another `advance`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from acestep_engine import guidance, samplers
from acestep_engine.errors import ParameterError
from acestep_engine.params import BUILT_TASKS, GenerationParams, latent_frames
from acestep_engine.samplers import SamplerState, Schedule

LATENT_CHANNELS = 8
LATENT_HEIGHT = 16

# Rows of a request's context, in this order; a request has a prefix of them.
CONDITIONED, UNCONDITIONED, TEXT_ONLY = range(3)

ERG_QUERY_SCALE = 0.01


@dataclass(frozen=True)
class Query:
    """One row of a forward: latents (8, 16, T) at a timestep in 0..1000, attending to context row `row`.

    `query_scale` below 1 weakens the cross-attention of some blocks (entropy-rectifying guidance).
    """

    latents: Tensor
    timestep: float
    row: int
    query_scale: float = 1.0


class TaskState(Protocol):
    """A request between two forwards."""

    @property
    def latents(self) -> Tensor:
        """(8, 16, T), in the model's precision; the song, once all forwards are done."""

    @property
    def forwards_done(self) -> int: ...

    @property
    def forwards(self) -> int:
        """How many forwards the whole request takes."""

    @property
    def rows_left(self) -> int:
        """How many rows all forwards that are left ask for."""

    def queries(self) -> tuple[Query, ...]:
        """The rows of the next forward, at least one; context rows are a prefix, in order."""

    def advance(self, velocities: Sequence[Tensor]) -> Self:
        """The state after the forward that answered `queries`, velocities (8, 16, T) in the same order."""


@dataclass(frozen=True)
class Denoise:
    """text2music and audio2audio: noise to music along one schedule, guided in its middle."""

    params: GenerationParams
    schedule: Schedule
    window: range  # forwards that are guided
    sampler: SamplerState
    generator: torch.Generator
    momentum: Tensor | None = None

    @property
    def latents(self) -> Tensor:
        return self.sampler.latents

    @property
    def forwards_done(self) -> int:
        return self.sampler.index

    @property
    def forwards(self) -> int:
        return self.schedule.forwards

    @property
    def rows_left(self) -> int:
        guided = len(range(max(self.window.start, self.forwards_done), self.window.stop))
        return self.forwards - self.forwards_done + guided * (2 if self.params.double_guided else 1)

    def queries(self) -> tuple[Query, ...]:
        timestep = self.schedule.timesteps[self.sampler.index].item()
        rows = [Query(self.latents, timestep, CONDITIONED)]
        if self.sampler.index in self.window:
            scale = ERG_QUERY_SCALE if self.params.use_erg_diffusion else 1.0
            rows.append(Query(self.latents, timestep, UNCONDITIONED, scale))
            if self.params.double_guided:
                rows.append(Query(self.latents, timestep, TEXT_ONLY))
        return tuple(rows)

    def advance(self, velocities: Sequence[Tensor]) -> "Denoise":
        velocity, momentum = self._guide(velocities)
        generator = self.generator.clone_state()  # this state stays as it is, to be advanced again if that fails
        sampler = samplers.step(
            self.params.scheduler, self.schedule, self.sampler, velocity, self.params.omega_scale, generator
        )
        return replace(self, sampler=sampler, generator=generator, momentum=momentum)

    def _guide(self, velocities: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        params, index = self.params, self.sampler.index
        if len(velocities) == 1:
            return velocities[0], self.momentum
        conditioned, unconditioned, *text_only = velocities
        if text_only:
            scales = params.guidance_scale_text, params.guidance_scale_lyric
            return guidance.double(conditioned, text_only[0], unconditioned, *scales), self.momentum
        scale = guidance.current_scale(params, self.window, index)
        if params.cfg_type == "apg":
            return guidance.apg(conditioned, unconditioned, scale, self.momentum)
        if params.cfg_type == "cfg_star":
            return guidance.cfg_star(conditioned, unconditioned, scale, index), self.momentum
        return guidance.cfg(conditioned, unconditioned, scale), self.momentum


def begin(params: GenerationParams, reference: Tensor | None, device: torch.device, dtype: torch.dtype) -> TaskState:
    """The first state of a request. All its noise comes from a generator of its own, seeded by `params.seed`.

    `reference` are latents (8, 16, T) of the source audio; audio2audio needs them and takes its length from them.
    Raises ParameterError for a task that is not built, or a missing reference.
    """
    if params.task not in BUILT_TASKS:
        raise ParameterError("task", f"{params.task!r} is not built yet; there are {', '.join(BUILT_TASKS)}")
    generator = torch.Generator(device=device).manual_seed(params.seed)
    if params.task == "audio2audio":
        if reference is None:
            raise ParameterError("ref_audio_input", "audio2audio needs a source")
        return _begin_from_reference(params, reference.to(device, dtype), generator)
    shape = (LATENT_CHANNELS, LATENT_HEIGHT, latent_frames(params.duration_s))
    noise = torch.randn(shape, generator=generator, device=device, dtype=dtype)
    schedule = samplers.make_schedule(params.scheduler, params.steps, params.oss_steps)
    return Denoise(params, schedule, guidance.guidance_window(params, schedule.steps), SamplerState(noise), generator)


def _begin_from_reference(params: GenerationParams, reference: Tensor, generator: torch.Generator) -> Denoise:
    """Begin part of the way: the reference under as much noise as `ref_audio_strength` leaves, and that share of the
    steps.

    As published, `oss_steps` counts here only by its last entry.
    """
    sigma_max = 1 - params.ref_audio_strength
    steps = int(sigma_max * max(params.oss_steps, default=params.steps))
    if sigma_max > 0:
        steps = max(steps, 1)  # published: none, which would leave the noise in
    noise = torch.randn(reference.shape, generator=generator, device=reference.device, dtype=reference.dtype)
    schedule = samplers.make_schedule(params.scheduler, steps, sigma_max=sigma_max)
    level = samplers.noise_level(sigma_max)
    latents = reference * (1 - level) + noise * level
    return Denoise(params, schedule, guidance.guidance_window(params, schedule.steps), SamplerState(latents), generator)
