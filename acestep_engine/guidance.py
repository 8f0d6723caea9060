"""Combine conditioned and unconditioned predictions. State in, state out; everything is per request.

Sources: classifier-free guidance (arXiv 2207.12598); adaptive projected guidance (arXiv 2410.02416); CFG-Zero* (arXiv
2503.18886).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from acestep_engine.params import GenerationParams

APG_MOMENTUM = -0.75
APG_NORM_LIMIT = 2.5
CFG_STAR_ZERO_STEPS = 1  # the last step whose guided velocity CFG-Zero* sets to zero
PLANE = (-2, -1)  # norms and projections run over height and time, channel by channel


def guidance_window(params: GenerationParams, steps: int) -> range:
    """The forwards that are guided: the middle `guidance_interval` of `steps`; empty if guidance is off.

    The published code counts forwards here, of which Heun makes two a step, so Heun is guided early; kept for equal
    music.
    """
    if not params.guided:
        return range(0)
    return range(int(steps * ((1 - params.guidance_interval) / 2)), int(steps * (params.guidance_interval / 2 + 0.5)))


def current_scale(params: GenerationParams, window: range, index: int) -> float:
    """The guidance scale of forward `index`: falls linearly to `min_guidance_scale` as far as the decay says."""
    if params.guidance_interval_decay <= 0 or len(window) < 2:
        return params.guidance_scale
    progress = (index - window.start) / (len(window) - 1)
    fall = (params.guidance_scale - params.min_guidance_scale) * progress * params.guidance_interval_decay
    return params.guidance_scale - fall


def cfg(conditioned: Tensor, unconditioned: Tensor, scale: float) -> Tensor:
    return unconditioned + scale * (conditioned - unconditioned)


def double(
    conditioned: Tensor, text_only: Tensor, unconditioned: Tensor, text_scale: float, lyric_scale: float
) -> Tensor:
    """Guide by the prompt and by the lyrics, each with a scale of its own."""
    return (1 - text_scale) * unconditioned + (text_scale - lyric_scale) * text_only + lyric_scale * conditioned


def cfg_star(conditioned: Tensor, unconditioned: Tensor, scale: float, index: int) -> Tensor:
    """CFG-Zero*: rescale the unconditioned prediction to fit best; forwards 0 and 1 answer zero."""
    if index <= CFG_STAR_ZERO_STEPS:
        return torch.zeros_like(conditioned)
    # In two steps: a sum of all values at once would depend on the number of threads.
    fit = (conditioned * unconditioned).sum(dim=-1).sum() / (unconditioned.square().sum(dim=-1).sum() + 1e-8)
    return cfg(conditioned, unconditioned * fit, scale)


def apg(conditioned: Tensor, unconditioned: Tensor, scale: float, momentum: Tensor | None) -> tuple[Tensor, Tensor]:
    """Adaptive projected guidance of (8, 16, T) predictions. Answers the guided velocity and the momentum to keep.

    The difference is averaged with the last ones, limited in norm, and loses its part along the conditioned prediction.
    """
    difference = conditioned - unconditioned
    if momentum is not None:
        difference = difference + APG_MOMENTUM * momentum
    kept = difference
    norm = difference.norm(dim=PLANE, keepdim=True)
    limited = (difference * torch.clamp(APG_NORM_LIMIT / norm, max=1.0)).double()
    direction = F.normalize(conditioned.double().flatten(-2), dim=-1).unflatten(-1, conditioned.shape[-2:])
    orthogonal = limited - (limited * direction).sum(dim=PLANE, keepdim=True) * direction
    return conditioned + (scale - 1) * orthogonal.to(conditioned.dtype), kept
