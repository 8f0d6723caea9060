"""The drums: a bar that repeats, a fill at the end of a phrase, a cymbal after it."""

import numpy as np

from training.nano.instruments import drums
from training.nano.piece import Density, Note
from training.nano.score.styles import BEATS
from training.nano.score.timing import Clock

_KEYS = {
    "k": drums.KICK, "s": drums.SNARE, "r": drums.RIM, "c": drums.CLAP, "h": drums.CLOSED_HAT, "o": drums.OPEN_HAT,
    "d": drums.RIDE, "a": drums.SHAKER,
}  # fmt: skip
_STRENGTH = {"X": 1.0, "x": 0.72, "o": 0.38}
_FASTEST_SIXTEENTHS_BPM = 126  # above, hands play eighths and leave out ghost notes

# Strokes that answer in every second bar, one of these in each piece: drum and sixteenth.
_ANSWERS: tuple[tuple[tuple[str, int], ...], ...] = ((("k", 14),), (("k", 10), ("k", 14)), (("o", 14),), (("k", 6),))

# The last half of a bar: s snare, h m l the toms from high to low.
_FILLS = ("s.sss.ss", "s.h.m.l.", "ssh.mml.", "s..s..sl", "hhmmllss", "..s.s.ss")
_FILL_KEYS = {"s": drums.SNARE, "h": drums.HIGH_TOM, "m": drums.MID_TOM, "l": drums.LOW_TOM}


def compose_drums(
    bars: int, clock: Clock, beat: str, density: Density, loudness: float, rng: np.random.Generator
) -> tuple[Note, ...]:
    """`bars` bars of one of BEATS with a fill each four or eight. Raises KeyError for another beat."""
    answer = _ANSWERS[int(rng.integers(len(_ANSWERS)))]
    every = 4 if density != "sparse" else 8
    notes: list[Note] = []
    for bar in range(bars):
        fill = _FILLS[int(rng.integers(len(_FILLS)))] if bar % every == every - 1 else ""
        for name, marks in BEATS[beat].items():
            for place, mark in enumerate(marks):
                if mark == "." or (fill and place >= 8 and name != "k"):
                    continue
                if name in "ha" and place % 4 and density == "sparse":
                    continue
                if place % 2 and (name in "ha" or mark == "o") and clock.bpm > _FASTEST_SIXTEENTHS_BPM:
                    continue
                notes.append(_stroke(_KEYS[name], bar, place, clock, loudness * _STRENGTH[mark], rng))
        if bar % 2 and not fill and density != "sparse":
            notes += [_stroke(_KEYS[name], bar, place, clock, loudness * _STRENGTH["x"], rng) for name, place in answer]
        for place, mark in enumerate(fill, start=8):
            if mark != ".":
                strength = loudness * (0.6 + 0.05 * (place - 8))
                notes.append(_stroke(_FILL_KEYS[mark], bar, place, clock, strength, rng))
        if bar and bar % every == 0:
            notes.append(_stroke(drums.CRASH, bar, 0, clock, loudness, rng))
    return tuple(sorted(notes, key=lambda note: note.start_s))


def _stroke(key: int, bar: int, place: int, clock: Clock, strength: float, rng: np.random.Generator) -> Note:
    return Note(clock.at_s(bar, place), 0.1, key, float(np.clip(strength + rng.normal(0, 0.03), 0.1, 1.0)))
