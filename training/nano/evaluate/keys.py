"""Key and mode: a small net over chroma that treats all twelve keys alike."""

import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.nano.evaluate.spectra import RATE_HZ, Audio, magnitudes
from training.nano.score.harmony import PITCH_CLASSES

WINDOW, HOP = 16_384, 4096
BASS_HZ, TREBLE_HZ = (45.0, 220.0), (220.0, 2200.0)
WIDTH_SEMITONES = 0.25  # how far off a partial may be and still count by half or more
COMPRESSION = 300.0
A4_HZ, A4_CLASS = 440.0, 9  # pitch classes count from C

MODES = ("major", "minor")
HIDDEN = 48


@dataclass(frozen=True)
class Key:
    """`tonic` 0 (C) to 11; `minor` is the probability, 0 to 1, that the mode is minor, whatever the tonic."""

    tonic: int
    minor: float

    @property
    def mode(self) -> str:
        return MODES[self.minor > 0.5]


def chroma(audio: Audio) -> Tensor:
    """How strong each pitch class is, (24, T) at about 11 frames a second: 12 of the bass, then 12 of what is above."""
    loudness = (1 + COMPRESSION * magnitudes(audio, WINDOW, HOP)).log()
    # Only what stands out of a third of an octave or so: a drum lifts all pitch classes.
    ground = F.avg_pool1d(loudness.mT[:, None], 41, 1, 20, count_include_pad=False)[:, 0].mT
    classes = _pitch_classes() @ (loudness - ground).clamp(min=0)  # (24, T)
    halves = classes.view(2, PITCH_CLASSES, -1)
    return (halves / halves.mean(dim=(1, 2), keepdim=True).clamp(min=1e-6)).flatten(0, 1)


class KeyNet(nn.Module):
    """Chroma (B, 24, T), T at least 9, to logits (B, 12, 2) over tonics and modes.

    The same small net looks at the chroma turned to each of the twelve tonics, so that what it learns of one key holds
    for all.
    """

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Sequential(
            nn.Conv1d(2 * PITCH_CLASSES, HIDDEN, 5, stride=2, padding=2),
            nn.GELU(),
            nn.Conv1d(HIDDEN, HIDDEN, 5, stride=2, padding=2),
            nn.GELU(),
            nn.Dropout1d(0.1),
        )
        self.judge = nn.Linear(2 * HIDDEN, len(MODES))

    def forward(self, classes: Tensor) -> Tensor:
        halves = classes.unflatten(1, (2, PITCH_CLASSES))  # (B, 2, 12, T)
        turned = torch.stack([halves.roll(-tonic, dims=2) for tonic in range(PITCH_CLASSES)], dim=1)
        seen = self.look(turned.flatten(0, 1).flatten(1, 2))  # (B * 12, HIDDEN, T / 4)
        logits: Tensor = self.judge(torch.cat([seen.mean(dim=2), seen.amax(dim=2)], dim=1))
        by_tonic: Tensor = logits.unflatten(0, (-1, PITCH_CLASSES))
        return by_tonic


@torch.inference_mode()
def key_of(net: KeyNet, audio: Audio) -> Key:
    """The most likely key of audio of 2 s or more."""
    shares = net(chroma(audio)[None])[0].flatten().softmax(dim=0).view(PITCH_CLASSES, len(MODES))
    minor = float(shares[:, 1].sum())
    return Key(int(shares[:, int(minor > 0.5)].argmax()), minor)


@cache
def _pitch_classes() -> Tensor:
    """Weights (24, WINDOW / 2 + 1) that collect the bins of a spectrum, each band's rows summing to about 1."""
    hz = torch.arange(WINDOW // 2 + 1) * RATE_HZ / WINDOW
    semitones = A4_CLASS + PITCH_CLASSES * (hz.clamp(min=1) / A4_HZ).log2()
    distance = semitones[None] - torch.arange(PITCH_CLASSES)[:, None]
    distance = distance - PITCH_CLASSES * (distance / PITCH_CLASSES).round()
    near = torch.exp(-math.log(2) * (distance / WIDTH_SEMITONES) ** 2)
    rows = [near * ((low <= hz) & (hz < high)) for low, high in (BASS_HZ, TREBLE_HZ)]
    return torch.cat([row / row.sum(dim=1, keepdim=True) for row in rows])
