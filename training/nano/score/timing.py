"""From bars and sixteenths to seconds."""

from dataclasses import dataclass

SIXTEENTHS = 16  # of a bar of four quarters


@dataclass(frozen=True)
class Clock:
    """The tempo of a piece, and how far the second eighth of a beat comes late (in beats)."""

    bpm: int
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
