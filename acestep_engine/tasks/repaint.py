"""repaint and extend: part of a song made anew, while the rest is held to the source at every step."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from acestep_engine import samplers
from acestep_engine.errors import ParameterError
from acestep_engine.params import MAX_DURATION_S, MAX_LATENT_FRAMES, GenerationParams, latent_frames
from acestep_engine.samplers import SamplerState, Schedule
from acestep_engine.tasks.denoise import Denoise, turned
from acestep_engine.tasks.guided import Guided, noise_like
from acestep_engine.tasks.state import Query, TaskState


@dataclass(frozen=True, eq=False)
class Repaint:
    """Frames in `mask` are denoised by Euler steps; all others are the source under the noise of each step.

    `source` and `noise` are (8, 16, T), `mask` (T,) bool. Begins at forward `first` of the schedule, with the source
    under that step's noise; at the end, what is outside of the mask is the source itself. As published, every scheduler
    gives only its timesteps here.
    """

    schedule: Schedule
    guided: Guided
    source: Tensor
    noise: Tensor
    mask: Tensor
    first: int
    index: int
    latents: Tensor

    @property
    def forwards_done(self) -> int:
        return self.index - self.first

    @property
    def forwards(self) -> int:
        return self.schedule.forwards - self.first

    @property
    def rows(self) -> int:
        return self.guided.rows(range(self.index, self.index + 1))

    @property
    def rows_left(self) -> int:
        return self.guided.rows(range(self.index, self.schedule.forwards))

    def queries(self) -> tuple[Query, ...]:
        return self.guided.queries(self.latents, self.schedule.timesteps[self.index].item(), self.index)

    def advance(self, velocities: Sequence[Tensor]) -> "Repaint":
        velocity, guided = self.guided.combine(velocities, self.index)
        level, following = (self.schedule.level(index) for index in (self.index, self.index + 1))
        made = self.latents + (following - level) * velocity
        held = noised(self.source, self.noise, following)
        return replace(self, guided=guided, index=self.index + 1, latents=torch.where(self.mask, made, held))


def noised(source: Tensor, noise: Tensor, level: float) -> Tensor:
    """The source under so much noise, 0 to 1."""
    return (1 - level) * source + level * noise


def repaint(
    params: GenerationParams, source: Tensor, generator: torch.Generator, retake_generator: torch.Generator
) -> TaskState:
    """Make the seconds from `repaint_start_s` to `repaint_end_s` of the source (8, 16, T) anew.

    `retake_variance` says how far from the source: the share of the steps that are run, and how far the noise of `seed`
    is turned towards that of `retake_seed`. The whole of the source, as published, is a retake of its length.
    Raises ParameterError for a range that is not within the source.
    """
    frames = source.shape[-1]
    start, stop = latent_frames(params.repaint_start_s), latent_frames(params.repaint_end_s)
    if not 0 <= start < stop <= frames:
        asked = f"{params.repaint_start_s:g} to {params.repaint_end_s:g} s"
        raise ParameterError("repaint_end", f"{asked} is no range within the source of {frames} latent frames")
    noise = noise_like(source, generator)
    other = turned(noise, noise_like(source, retake_generator), params.retake_variance)
    schedule = samplers.make_schedule(params.scheduler, params.steps, params.oss_steps)
    if stop - start == frames:
        return Denoise(params, schedule, Guided.along(params, schedule), SamplerState(other), generator)
    mask = torch.zeros(frames, dtype=torch.bool, device=source.device)
    mask[start:stop] = True
    return _begin(params, schedule, source, torch.where(mask, other, noise), mask)


def extend(
    params: GenerationParams, source: Tensor, generator: torch.Generator, retake_generator: torch.Generator
) -> TaskState:
    """Make `left_extend_s` before and `right_extend_s` after the source (8, 16, T); `duration_s` is that of all three.

    What is new begins as the noise of `retake_seed`. Where the published code fails or pads the wrong side (a source of
    another length than it was told, both sides at once, over 240 s), this does what was asked, and refuses the last.
    Raises ParameterError if there is nothing to add, or over 240 s in all.
    """
    frames = source.shape[-1]
    left = latent_frames(params.left_extend_s)
    right = max(0, latent_frames(params.duration_s - params.left_extend_s) - frames) if params.right_extend_s > 0 else 0
    if left + right == 0:
        raise ParameterError(
            "right_extend_length", "there is nothing to add: ask for more seconds on the left or right"
        )
    if left + frames + right > MAX_LATENT_FRAMES:
        raise ParameterError("right_extend_length", f"the result would be longer than {MAX_DURATION_S:g} s")
    noise = noise_like(source, generator)
    rounds = -(-(left + right) // frames)  # one, as published, unless more is to be added than there is
    new = torch.cat([noise_like(source, retake_generator) for _ in range(rounds)], dim=-1)
    noise = torch.cat([new[..., :left], noise, new[..., new.shape[-1] - right :]], dim=-1)
    mask = F.pad(torch.zeros(frames, dtype=torch.bool, device=source.device), (left, right), value=True)
    schedule = samplers.make_schedule(params.scheduler, params.steps, params.oss_steps)
    return _begin(params, schedule, F.pad(source, (left, right)), noise, mask)


def _begin(params: GenerationParams, schedule: Schedule, source: Tensor, noise: Tensor, mask: Tensor) -> Repaint:
    skipped = int(max(params.oss_steps, default=params.steps) * (1 - params.retake_variance))
    first = min(skipped, schedule.forwards - 1)  # published: none is run for a variance of 0, which would leave noise
    latents = noised(source, noise, schedule.level(first))
    return Repaint(schedule, Guided.along(params, schedule), source, noise, mask, first, first, latents)
