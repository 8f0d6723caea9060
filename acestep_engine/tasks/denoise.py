"""text2music, audio2audio and retake: noise to music along one schedule."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from acestep_engine import samplers
from acestep_engine.params import GenerationParams, latent_frames
from acestep_engine.samplers import SamplerState, Schedule
from acestep_engine.tasks.guided import Guided, noise_like
from acestep_engine.tasks.state import LATENT_CHANNELS, LATENT_HEIGHT, Query


@dataclass(frozen=True, eq=False)
class Denoise:
    """Noise to music along one schedule, guided in its middle. The sampler's own noise comes from `generator`."""

    params: GenerationParams
    schedule: Schedule
    guided: Guided
    sampler: SamplerState
    generator: torch.Generator

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
    def rows(self) -> int:
        return self.guided.rows(range(self.sampler.index, self.sampler.index + 1))

    @property
    def rows_left(self) -> int:
        return self.guided.rows(range(self.forwards_done, self.forwards))

    def queries(self) -> tuple[Query, ...]:
        index = self.sampler.index
        return self.guided.queries(self.latents, self.schedule.timesteps[index].item(), index)

    def advance(self, velocities: Sequence[Tensor]) -> "Denoise":
        velocity, guided = self.guided.combine(velocities, self.sampler.index)
        generator = self.generator.clone_state()  # this state stays as it is, to be advanced again if that fails
        sampler = samplers.step(
            self.params.scheduler, self.schedule, self.sampler, velocity, self.params.omega_scale, generator
        )
        return replace(self, sampler=sampler, generator=generator, guided=guided)


def from_noise(params: GenerationParams, generator: torch.Generator) -> Denoise:
    """text2music: a song of `duration_s`."""
    return _along(params, _first_noise(params, generator), generator)


def retake(params: GenerationParams, generator: torch.Generator, retake_generator: torch.Generator) -> Denoise:
    """The song of `seed` on noise turned towards that of `retake_seed`: by nothing at variance 0, all the way at 1."""
    noise = _first_noise(params, generator)
    return _along(params, turned(noise, noise_like(noise, retake_generator), params.retake_variance), generator)


def turned(noise: Tensor, other: Tensor, variance: float) -> Tensor:
    """Noise turned towards other noise by `variance` (0..1) of a right angle, so that its variance stays 1."""
    angle = torch.tensor(variance * math.pi / 2, device=noise.device, dtype=noise.dtype)
    return torch.cos(angle) * noise + torch.sin(angle) * other


def from_reference(params: GenerationParams, reference: Tensor, generator: torch.Generator) -> Denoise:
    """audio2audio: begin part of the way, with the reference under as much noise as `ref_audio_strength` leaves.

    As published, `oss_steps` counts here only by its last entry.
    """
    sigma_max = 1 - params.ref_audio_strength
    steps = int(sigma_max * max(params.oss_steps, default=params.steps))
    if sigma_max > 0:
        steps = max(steps, 1)  # published: none, which would leave the noise in
    schedule = samplers.make_schedule(params.scheduler, steps, sigma_max=sigma_max)
    level = samplers.noise_level(sigma_max)
    latents = reference * (1 - level) + noise_like(reference, generator) * level
    return Denoise(params, schedule, Guided.along(params, schedule), SamplerState(latents), generator)


def _first_noise(params: GenerationParams, generator: torch.Generator) -> Tensor:
    shape = (LATENT_CHANNELS, LATENT_HEIGHT, latent_frames(params.duration_s))
    return torch.randn(shape, generator=generator, device=generator.device)


def _along(params: GenerationParams, noise: Tensor, generator: torch.Generator) -> Denoise:
    schedule = samplers.make_schedule(params.scheduler, params.steps, params.oss_steps)
    return Denoise(params, schedule, Guided.along(params, schedule), SamplerState(noise), generator)
