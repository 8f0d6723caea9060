"""From bars and sixteenths to seconds."""

import math
from dataclasses import dataclass

from acestep_engine.params import LATENT_RATE_HZ

SIXTEENTHS = 16  # of a bar of four quarters
TEMPOS_PER_OCTAVE = 10


def tempo_number(bpm: float) -> int:
    """Which of the tempos is played for one asked for; higher ones are slower, 17 serve 60 to 180 bpm."""
    return round(TEMPOS_PER_OCTAVE * math.log2(240.0 / bpm * LATENT_RATE_HZ / (2 * math.pi)))


def bar_frames(bpm: float) -> float:
    """The latent frames of a bar at the tempo that is played for one asked for, at most 3.5 % off.

    They are periods of the transformer's rotary positions: some of these turn once, twice, four times a bar.
    """
    return 2 * math.pi * math.exp2(tempo_number(bpm) / TEMPOS_PER_OCTAVE)


def played_bpm(bpm: float) -> float:
    """The tempo, in beats of four a bar, of bars of `bar_frames`."""
    return 240.0 * LATENT_RATE_HZ / bar_frames(bpm)


@dataclass(frozen=True)
class Clock:
    """The tempo of a piece, and how far the second eighth of a beat comes late (in beats)."""

    bpm: float
    swing: float

    def at_s(self, bar: int, sixteenth: float) -> float:
        """When a sixteenth of a bar is played, in seconds; swing stretches the first half of each beat."""
        beat, place = divmod(sixteenth / 4.0, 1.0)
        half = 0.5 + self.swing
        warped = place * 2 * half if place < 0.5 else half + (place - 0.5) * 2 * (1 - half)
        return (bar * 4 + beat + warped) * 60.0 / self.bpm

    def length_s(self, bar: int, start: float, end: float) -> float:
        """The time from one sixteenth to another (it may lie in the next bar), in seconds."""
        return self.at_s(bar, end) - self.at_s(bar, start)
