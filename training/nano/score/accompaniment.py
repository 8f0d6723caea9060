"""Chords and bass behind the lead."""

import numpy as np

from training.nano.piece import Note
from training.nano.score.harmony import Chord, nearest, voice
from training.nano.score.styles import ARPEGGIOS, BASS_LINES, PATTERNS
from training.nano.score.timing import SIXTEENTHS, Clock

_STRUM_S = 0.014  # from string to string
_STRENGTH = {"X": 1.0, "x": 0.82, "o": 0.6}
_BASS_CENTRE = 38


def compose_chords(
    chords: tuple[Chord, ...], clock: Clock, pattern: str, centre: int, loudness: float, rng: np.random.Generator
) -> tuple[Note, ...]:
    """One chord per bar, struck as in PATTERNS or broken as in ARPEGGIOS. Raises KeyError for another pattern."""
    notes: list[Note] = []
    voicing: tuple[int, ...] = ()
    for bar, chord in enumerate(chords):
        voicing = voice(chord, voicing, centre)
        if pattern in ARPEGGIOS:
            notes += _broken(voicing, bar, clock, ARPEGGIOS[pattern], loudness, rng)
        else:
            apart_s = _STRUM_S if pattern == "strum" else 0.0
            notes += _struck(voicing, bar, clock, PATTERNS[pattern], apart_s, loudness, rng)
    return tuple(notes)


def _struck(
    voicing: tuple[int, ...],
    bar: int,
    clock: Clock,
    marks: str,
    apart_s: float,
    loudness: float,
    rng: np.random.Generator,
) -> list[Note]:
    onsets = [index for index, mark in enumerate(marks) if mark != "."]
    notes = []
    for onset, end in zip(onsets, [*onsets[1:], SIXTEENTHS], strict=True):
        # A chord that comes alone lasts; a stab does not.
        length = clock.length_s(bar, onset, end) * (0.97 if len(onsets) <= 2 else 0.7)
        velocity = loudness * _STRENGTH[marks[onset]] + float(rng.normal(0, 0.03))
        velocity = float(np.clip(velocity, 0.2, 1.0))
        start_s = clock.at_s(bar, onset)
        notes += [Note(start_s + apart_s * n, length, pitch, velocity) for n, pitch in enumerate(voicing)]
    return notes


def _broken(
    voicing: tuple[int, ...], bar: int, clock: Clock, order: tuple[int, ...], loudness: float, rng: np.random.Generator
) -> list[Note]:
    tones = (*voicing, voicing[0] + 12)
    notes = []
    for eighth, tone in enumerate(order):
        if tone >= 0:
            velocity = float(np.clip(loudness * (1.0 if eighth % 4 == 0 else 0.85) + rng.normal(0, 0.03), 0.2, 1.0))
            length = clock.length_s(bar, 2 * eighth, 2 * eighth + 3)
            notes.append(Note(clock.at_s(bar, 2 * eighth), length, tones[tone], velocity))
    return notes


def compose_bass(
    chords: tuple[Chord, ...], clock: Clock, line: str, loudness: float, rng: np.random.Generator
) -> tuple[Note, ...]:
    """A bass line: one of BASS_LINES, or `"walking"` in quarters towards the next root."""
    notes: list[Note] = []
    for bar, chord in enumerate(chords):
        root = nearest((chord.root,), _BASS_CENTRE)
        following = chords[(bar + 1) % len(chords)]
        if line == "walking":
            steps = _walk(root, chord, nearest((following.root,), _BASS_CENTRE), rng)
        else:
            above = {"1": 0, "3": (chord.tones[1] - chord.root) % 12, "5": (chord.tones[2] - chord.root) % 12, "8": 12}
            steps = [(place, root + above[mark]) for place, mark in enumerate(BASS_LINES[line]) if mark != "."]
        ends = [*(place for place, _ in steps[1:]), SIXTEENTHS]
        for (place, pitch), end in zip(steps, ends, strict=True):
            velocity = float(np.clip(loudness * (1.0 if place % 8 == 0 else 0.88) + rng.normal(0, 0.03), 0.2, 1.0))
            notes.append(Note(clock.at_s(bar, place), 0.88 * clock.length_s(bar, place, end), pitch, velocity))
    return tuple(notes)


def _walk(root: int, chord: Chord, goal: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Four quarters: the root, two tones of the chord, and a neighbour of the next root."""
    third = root + (chord.tones[1] - chord.root) % 12
    fifth = root + (chord.tones[2] - chord.root) % 12
    middle = [(third, fifth), (fifth, third), (fifth, root + 12)][int(rng.integers(3))]
    approach = nearest(chord.scale, goal + (2 if rng.random() < 0.5 else -2))
    return [(0, root), (4, middle[0]), (8, middle[1]), (12, approach)]
