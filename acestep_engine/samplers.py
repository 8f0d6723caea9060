"""Flow-matching samplers: Euler, Heun and ping-pong, with the published schedule. State in, state out.

A schedule is a list of sigmas from 1 (noise) to 0 (music). The model answers a velocity v = noise - music, so that
latents = music + sigma * v. Sources: Lipman et al. 2022 (arXiv 2210.02747); Karras et al. 2022 (arXiv 2206.00364) for
Heun; ping-pong sampling (arXiv 2505.08175) renoises a full estimate at every step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from acestep_engine.params import SchedulerType

TRAIN_TIMESTEPS = 1000
SHIFT = 3.0  # how far the schedule leans towards noise (SD3, arXiv 2403.03206, equation 23)


@dataclass(frozen=True)
class Schedule:
    """Sigmas and timesteps of one request, float32 on the CPU.

    `sigmas` (forwards + 1) ends in 0. `timesteps` (forwards) is what the model is told, in 0..1000. Heun evaluates
    twice at every inner sigma, so its `forwards` is 2 * steps - 1; `steps` is the number that was asked for.
    """

    sigmas: Tensor
    timesteps: Tensor
    steps: int

    @property
    def forwards(self) -> int:
        return len(self.timesteps)

    def level(self, index: int) -> float:
        """The share of noise in the latents that forward `index` sees, 0..1; 0 after the last."""
        return (self.timesteps[index] / TRAIN_TIMESTEPS).item() if index < self.forwards else 0.0


@dataclass(frozen=True)
class SamplerState:
    """Where one request is. `latents` (8, 16, T); Heun keeps the slope and the latents of its last first-order step."""

    latents: Tensor
    index: int = 0
    slope: Tensor | None = None
    origin: Tensor | None = None


def make_schedule(
    scheduler: SchedulerType, steps: int, oss_steps: Sequence[int] = (), sigma_max: float = 1.0
) -> Schedule:
    """Return the published schedule of `steps` steps starting at noise level `sigma_max` in 0..1.

    `oss_steps` picks single steps (1-based, increasing) of a schedule as long as the last of them. As published, the
    picked timesteps are rounded to float32 on the way to sigmas and back, and are shifted once more.
    """
    tensor = _sigmas(max(oss_steps, default=steps), sigma_max)
    if oss_steps:
        timesteps = tensor * TRAIN_TIMESTEPS
        tensor = _shift(timesteps[[step - 1 for step in oss_steps]] / TRAIN_TIMESTEPS)
    count = len(tensor)
    zero = torch.zeros(1)
    if scheduler == "heun":
        timesteps = torch.cat([tensor[:1], tensor[1:].repeat_interleave(2)]) * TRAIN_TIMESTEPS
        inner = torch.cat([tensor, zero])[1:-1].repeat_interleave(2)
        return Schedule(torch.cat([tensor[:1], inner, zero]), timesteps, count)
    return Schedule(torch.cat([tensor, zero]), tensor * TRAIN_TIMESTEPS, count)


def noise_level(sigma_max: float) -> float:
    """How much noise a schedule that starts at `sigma_max` expects in its first latents, 0..1."""
    return _bounds(sigma_max)[1]


def step(
    scheduler: SchedulerType,
    schedule: Schedule,
    state: SamplerState,
    velocity: Tensor,
    omega_scale: float,
    generator: torch.Generator,
) -> SamplerState:
    """The state after one forward. `velocity` (8, 16, T) was predicted at `schedule.timesteps[state.index]`.

    Ping-pong draws its noise from `generator`.
    """
    if scheduler == "heun":
        return _heun(schedule, state, velocity, omega_scale)
    sigma, following = schedule.sigmas[state.index].item(), schedule.sigmas[state.index + 1].item()
    latents = state.latents
    if scheduler == "pingpong":
        estimate = latents - sigma * velocity
        noise = torch.empty_like(latents).normal_(generator=generator)
        latents = (1 - following) * estimate + following * noise
    else:
        latents = latents + _rescale((following - sigma) * velocity, omega_scale)
    return replace(state, latents=latents, index=state.index + 1)


def _heun(schedule: Schedule, state: SamplerState, velocity: Tensor, omega_scale: float) -> SamplerState:
    index, slope = state.index, velocity
    if state.slope is None:  # first order: to the next sigma along the slope here
        origin = state.latents
        width = (schedule.sigmas[index + 1] - schedule.sigmas[index]).item()
        kept: tuple[Tensor | None, Tensor | None] = (slope, origin)
    else:  # second order: from where the first-order step began, along the mean of both slopes
        assert state.origin is not None
        origin = state.origin
        width = (schedule.sigmas[index] - schedule.sigmas[index - 1]).item()
        slope = 0.5 * (state.slope + slope)
        kept = (None, None)
    latents = origin + _rescale(slope * width, omega_scale)
    return SamplerState(latents, index + 1, *kept)


def _rescale(change: Tensor, omega_scale: float) -> Tensor:
    """Stretch a change around its mean by 0.9 to 1.1: the published granularity scale, a logistic of `omega_scale`.

    The mean is over one request; the published code takes it over the whole batch, which makes neighbours audible.
    """
    omega = 0.9 + 0.2 / (1 + math.exp(-0.1 * omega_scale))
    mean = change.mean(dim=-1).mean()  # in two steps: one over all values would depend on the number of threads
    return (change - mean) * omega + mean


def _shift(sigma: Any) -> Any:
    return SHIFT * sigma / (1 + (SHIFT - 1) * sigma)


def _bounds(sigma_max: float) -> tuple[float, float]:
    """The lowest and highest sigma of the training schedule, in float32 as the published schedulers keep them."""
    train = np.linspace(1.0, sigma_max * TRAIN_TIMESTEPS, TRAIN_TIMESTEPS, dtype=np.float32)
    sigmas = _shift(torch.from_numpy(train) / TRAIN_TIMESTEPS)
    return sigmas[0].item(), sigmas[-1].item()


def _sigmas(steps: int, sigma_max: float) -> Tensor:
    """Computed in float64 and kept in float32, as published."""
    lowest, highest = _bounds(sigma_max)
    timesteps = np.linspace(highest * TRAIN_TIMESTEPS, lowest * TRAIN_TIMESTEPS, steps)
    return torch.from_numpy(_shift(timesteps / TRAIN_TIMESTEPS).astype(np.float32))
