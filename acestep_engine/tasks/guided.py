"""Which rows a guided forward asks for, and the one velocity that comes of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from acestep_engine import guidance
from acestep_engine.params import GenerationParams
from acestep_engine.samplers import Schedule
from acestep_engine.tasks.state import CONDITIONED, TEXT_ONLY, UNCONDITIONED, Query

ERG_QUERY_SCALE = 0.01


def noise_like(latents: Tensor, generator: torch.Generator) -> Tensor:
    """Noise of the same shape, drawn on the same device."""
    return torch.randn(latents.shape, generator=generator, device=latents.device)


@dataclass(frozen=True, eq=False)
class Guided:
    """The guidance of one request between two forwards; those in `window` are guided."""

    params: GenerationParams
    window: range
    momentum: Tensor | None = None

    @classmethod
    def along(cls, params: GenerationParams, schedule: Schedule) -> Self:
        return cls(params, guidance.guidance_window(params, schedule.steps))

    def rows(self, forwards: range) -> int:
        """How many rows these forwards ask for."""
        guided = len(range(max(self.window.start, forwards.start), min(self.window.stop, forwards.stop)))
        return len(forwards) + guided * (2 if self.params.double_guided else 1)

    def queries(self, latents: Tensor, timestep: float, index: int) -> tuple[Query, ...]:
        """The rows of forward `index`."""
        rows = [Query(latents, timestep, CONDITIONED)]
        if index in self.window:
            scale = ERG_QUERY_SCALE if self.params.use_erg_diffusion else 1.0
            rows.append(Query(latents, timestep, UNCONDITIONED, scale))
            if self.params.double_guided:
                rows.append(Query(latents, timestep, TEXT_ONLY))
        return tuple(rows)

    def combine(self, velocities: Sequence[Tensor], index: int) -> tuple[Tensor, Self]:
        """The velocity to follow after forward `index`, and the guidance of the next."""
        params = self.params
        if len(velocities) == 1:
            return velocities[0], self
        conditioned, unconditioned, *text_only = velocities
        if text_only:
            scales = params.guidance_scale_text, params.guidance_scale_lyric
            return guidance.double(conditioned, text_only[0], unconditioned, *scales), self
        scale = guidance.current_scale(params, self.window, index)
        if params.cfg_type == "apg":
            velocity, momentum = guidance.apg(conditioned, unconditioned, scale, self.momentum)
            return velocity, replace(self, momentum=momentum)
        if params.cfg_type == "cfg_star":
            return guidance.cfg_star(conditioned, unconditioned, scale, index), self
        return guidance.cfg(conditioned, unconditioned, scale), self
