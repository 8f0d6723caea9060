"""Whether drums play: sounds that begin at once over a wide band, deep or high, where melody instruments do not."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.nano.evaluate.spectra import Audio, band_rows, magnitudes

WINDOW, HOP = 1024, 256
BANDS_HZ = ((30.0, 130.0), (130.0, 500.0), (500.0, 2000.0), (2000.0, 6000.0), (6000.0, 15_000.0))
FLAT_BANDS = 2  # of the highest bands it is also told how noise-like they are
RISE_FRAMES = 3
FEATURES = 3 * len(BANDS_HZ) + FLAT_BANDS
SOFTEST = 1e-7  # of power, beside the clip's mean: 70 dB down


def drum_features(audio: Audio) -> Tensor:
    """(FEATURES,): of each band its level and how far it rises at once, on average and at most; how flat the high are.

    All beside the clip's own level, so that loudness tells nothing.
    """
    power = magnitudes(audio, WINDOW, HOP).square()  # (F, T)
    power = power / power.sum(dim=0).mean().clamp(min=1e-12)
    rows = [power[band_rows(WINDOW, low, high)] for low, high in BANDS_HZ]
    levels = torch.stack([row.sum(dim=0) for row in rows]).clamp(min=SOFTEST).log()  # (bands, T)
    before = F.pad(levels, (RISE_FRAMES, 0), value=0.0)[:, : levels.shape[1]]
    before[:, :RISE_FRAMES] = levels[:, :RISE_FRAMES]
    # A rise counts by what it adds: one that stays far below the music is no drum.
    added = (levels.exp() - before.exp()).clamp(min=0)
    rises = torch.stack([added.mean(dim=1), added.quantile(0.98, dim=1)]).clamp(min=SOFTEST).log().flatten()
    flat = torch.stack([_flatness(row) for row in rows[-FLAT_BANDS:]])
    return torch.cat([levels.exp().mean(dim=1).clamp(min=SOFTEST).log(), rises, flat])


class DrumLine(nn.Module):
    """`drum_features` (B, FEATURES) to the logit (B,) that drums play: one threshold on a weighted sum."""

    centre: Tensor
    spread: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(FEATURES))
        self.register_buffer("spread", torch.ones(FEATURES))
        self.weigh = nn.Linear(FEATURES, 1)

    def settle(self, features: Tensor) -> None:
        """Take the mean and spread of training features (N, FEATURES)."""
        self.centre.copy_(features.mean(dim=0))
        self.spread.copy_(features.std(dim=0).clamp(min=1e-3))

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.weigh((features - self.centre) / self.spread)
        return logits[:, 0]


@torch.inference_mode()
def drums_probability(line: DrumLine, audio: Audio) -> float:
    """How likely it is, 0 to 1, that drums play."""
    return float(line(drum_features(audio)[None]).sigmoid())


def _flatness(power: Tensor) -> Tensor:
    """The log of geometric over arithmetic mean of a band's rows, weighted by the power of its frames (F, T)."""
    flat = (power + 1e-12).log().mean(dim=0) - (power.mean(dim=0) + 1e-12).log()  # (T,)
    weights = power.sum(dim=0)
    return (flat * weights).sum() / weights.sum().clamp(min=1e-12)
