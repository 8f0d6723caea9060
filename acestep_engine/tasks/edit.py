"""edit: a song moved from what its prompt and lyrics say to what others say (FlowEdit, arXiv 2412.08629)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from acestep_engine import guidance, samplers
from acestep_engine.errors import ParameterError
from acestep_engine.params import GenerationParams
from acestep_engine.samplers import Schedule
from acestep_engine.tasks.guided import noise_like
from acestep_engine.tasks.repaint import noised
from acestep_engine.tasks.state import CONDITIONED, Query

# Contexts of a request, of one row each. What is unconditioned attends to no lyrics, so that its context is shorter.
SOURCE, TARGET, SOURCE_NOTHING, TARGET_NOTHING = range(4)


@dataclass(frozen=True, eq=False)
class Edit:
    """Up to forward step `stop`, the song moves along the difference of both predictions; from there on it is sampled.

    The difference is averaged over `edit_n_avg` draws of noise, one forward each: `draw` counts them, `difference` sums
    them up. As published: guidance acts at every step, always apg; only the source's has momentum before `stop`, only
    the target's after it; the schedule is Euler's; ping-pong moves nothing before `stop`.
    """

    params: GenerationParams
    schedule: Schedule
    first: int
    stop: int
    source: Tensor
    generator: torch.Generator
    index: int
    draw: int
    latents: Tensor
    noise: Tensor
    difference: Tensor
    momentum: Tensor | None = None

    @property
    def forwards(self) -> int:
        return (self.stop - self.first) * self.params.edit_n_avg + self.schedule.forwards - self.stop

    @property
    def forwards_done(self) -> int:
        moved = min(self.index, self.stop) - self.first
        return moved * self.params.edit_n_avg + self.draw + max(0, self.index - self.stop)

    @property
    def rows(self) -> int:
        return (2 if self.index < self.stop else 1) * (2 if self.params.guided else 1)

    @property
    def rows_left(self) -> int:
        sampled = self.schedule.forwards - max(self.index, self.stop)
        moves = self.forwards - self.forwards_done - sampled
        return (2 * moves + sampled) * (2 if self.params.guided else 1)

    def queries(self) -> tuple[Query, ...]:
        timestep = self.schedule.timesteps[self.index].item()
        target = self.latents
        rows = []
        if self.index < self.stop:
            source = noised(self.source, self.noise, self.schedule.level(self.index))
            target = self.latents + source - self.source
            rows += self._pair(source, timestep, (SOURCE, SOURCE_NOTHING))
        return (*rows, *self._pair(target, timestep, (TARGET, TARGET_NOTHING)))

    def advance(self, velocities: Sequence[Tensor]) -> "Edit":
        if self.index < self.stop:
            return self._move(velocities)
        velocity, momentum = self._guide(velocities, self.momentum)
        generator = self.generator.clone_state()
        level, following = (self.schedule.level(index) for index in (self.index, self.index + 1))
        latents = self.latents
        if self.params.scheduler == "pingpong":
            latents = noised(
                latents - level * velocity, torch.empty_like(latents).normal_(generator=generator), following
            )
        else:
            latents = latents + (following - level) * velocity
        return replace(self, index=self.index + 1, latents=latents, momentum=momentum, generator=generator)

    def _move(self, velocities: Sequence[Tensor]) -> "Edit":
        half = len(velocities) // 2
        source, momentum = self._guide(velocities[:half], self.momentum)
        target, _ = self._guide(velocities[half:], None)
        difference = self.difference + (1 / self.params.edit_n_avg) * (target - source)
        drawn = replace(self, difference=difference, momentum=momentum, generator=self.generator.clone_state())
        if self.draw + 1 < self.params.edit_n_avg:
            return replace(drawn, draw=self.draw + 1, noise=noise_like(self.source, drawn.generator))
        latents = self.latents
        if self.params.scheduler == "pingpong":
            torch.empty_like(latents).normal_(generator=drawn.generator)  # drawn for nothing, as published
        else:
            level, following = (self.schedule.level(index) for index in (self.index, self.index + 1))
            latents = latents + (following - level) * difference
        return replace(
            drawn, index=self.index + 1, draw=0, latents=latents, difference=torch.zeros_like(difference)
        )._drawn()

    def _drawn(self) -> "Edit":
        """With the noise of the next step; at `stop`, it takes the song to where sampling begins."""
        if self.index > self.stop or self.index == self.schedule.forwards:
            return self
        noise = noise_like(self.source, self.generator)
        if self.index < self.stop:
            return replace(self, noise=noise)
        source = noised(self.source, noise, self.schedule.level(self.index))
        return replace(self, latents=self.latents + source - self.source, momentum=None)

    def _pair(self, latents: Tensor, timestep: float, contexts: tuple[int, int]) -> list[Query]:
        """The conditioned row, and the unconditioned one if there is guidance."""
        asked = contexts if self.params.guided else contexts[:1]
        return [Query(latents, timestep, CONDITIONED, context=context) for context in asked]

    def _guide(self, velocities: Sequence[Tensor], momentum: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if len(velocities) == 1:
            return velocities[0], None
        return guidance.apg(velocities[0], velocities[1], self.params.guidance_scale, momentum)


def edit(params: GenerationParams, source: Tensor, generator: torch.Generator) -> Edit:
    """Move the source (8, 16, T) between `edit_n_min` and `edit_n_max` of the steps; all noise is of `generator`.

    Raises ParameterError unless 0 <= `edit_n_min` <= `edit_n_max` <= 1.
    """
    if not 0 <= params.edit_n_min <= params.edit_n_max <= 1:
        raise ParameterError("edit_n_max", f"{params.edit_n_max:g} is under edit_n_min, which is {params.edit_n_min:g}")
    schedule = samplers.make_schedule("euler", params.steps)
    first, stop = int(params.steps * params.edit_n_min), int(params.steps * params.edit_n_max)
    nothing = torch.zeros_like(source)
    state = Edit(params, schedule, first, stop, source, generator, first, 0, source, nothing, nothing)
    return state._drawn()
