"""The lead: phrases of four bars made of two motifs, whose strong notes belong to the chord."""

import numpy as np

from training.nano.piece import Density, Note
from training.nano.score.harmony import Chord, ladder, nearest
from training.nano.score.timing import SIXTEENTHS, Clock

# Bars of a melody. The last bar of a phrase takes one of the endings.
_RHYTHMS: dict[Density, tuple[str, ...]] = {
    "sparse": ("x.......x.......", "x...........x...", "x.....x.........", "....x.......x...", "x.......x...x..."),
    "medium": ("x...x...x...x...", "x...x.x.x.......", "x.....x.x...x...", "x.x.x...x...x...", "x...x...x.x.x..."),
    "busy": ("x.x.x.x.x.x.x.x.", "x...x.x.x.x.x.x.", "x.x.x.x.x...x.x.", "x.xxx.x.x.x.x.x.", "x..x..x.x.x.x.x."),
}
_ENDINGS: dict[Density, tuple[str, ...]] = {
    "sparse": ("x...............", "x.......x......."),
    "medium": ("x...x...x.......", "x.x.x...x......."),
    "busy": ("x.x.x.x.x.......", "x.x.x.x.x...x..."),
}
_STEPS, _STEP_WEIGHTS = (-3, -2, -1, 0, 1, 2, 3), (0.05, 0.12, 0.3, 0.06, 0.3, 0.12, 0.05)


def compose_melody(
    chords: tuple[Chord, ...],
    clock: Clock,
    density: Density,
    reach: tuple[int, int],
    held: float,
    loudness: float,
    rng: np.random.Generator,
) -> tuple[Note, ...]:
    """A melody over one chord per bar, in the pitches of `reach`; a note sounds for `held` of its time."""
    pool = _RHYTHMS[density]
    first, second = (pool[int(index)] for index in rng.permutation(len(pool))[:2])
    ending = _ENDINGS[density][int(rng.integers(len(_ENDINGS[density])))]
    motifs = {rhythm: _contour(rhythm, rng) for rhythm in (first, second, ending)}
    notes: list[Note] = []
    pitch = nearest(chords[0].tones, (reach[0] + reach[1]) / 2)
    for bar, chord in enumerate(chords):
        rhythm = ending if bar % 4 == 3 else second if bar % 4 == 1 and bar % 8 < 4 else first
        # A phrase rises to its third bar and comes back.
        goal = reach[0] + (reach[1] - reach[0]) * (0.40, 0.55, 0.70, 0.45)[bar % 4]
        pitch = nearest(chord.tones, 0.5 * pitch + 0.5 * goal)
        pitches = _sing(chord, motifs[rhythm], pitch, rhythm, reach, closing=bar % 4 == 3)
        pitch = pitches[-1]
        notes += _place(rhythm, pitches, bar, clock, held, loudness, rng)
    return tuple(notes)


def _contour(rhythm: str, rng: np.random.Generator) -> tuple[int, ...]:
    """Steps of the scale between the notes of a bar; the first is 0."""
    count = rhythm.count("x")
    return (0, *(int(step) for step in rng.choice(_STEPS, size=count - 1, p=_STEP_WEIGHTS)))


def _sing(
    chord: Chord, contour: tuple[int, ...], pitch: int, rhythm: str, reach: tuple[int, int], closing: bool
) -> list[int]:
    """The pitches of a bar: along the contour on the scale, on tones of the chord where the beat is strong.

    A closing bar also ends on one.
    """
    rungs = ladder(chord, *reach)
    place = min(range(len(rungs)), key=lambda index: abs(rungs[index] - pitch))
    pitches = []
    onsets = [index for index, mark in enumerate(rhythm) if mark == "x"]
    for onset, step in zip(onsets, contour, strict=True):
        place += step
        if not 0 <= place < len(rungs):
            place -= 2 * step  # turn back at the end of the reach
        place = int(np.clip(place, 0, len(rungs) - 1))
        if onset % 8 == 0 or (closing and onset == onsets[-1]):
            tones = [index for index in range(len(rungs)) if rungs[index] % 12 in chord.tones[:3]]
            place = min(tones, key=lambda index: abs(index - place))
        pitches.append(rungs[place])
    return pitches


def _place(
    rhythm: str, pitches: list[int], bar: int, clock: Clock, held: float, loudness: float, rng: np.random.Generator
) -> list[Note]:
    onsets = [index for index, mark in enumerate(rhythm) if mark == "x"]
    notes = []
    for onset, end, pitch in zip(onsets, [*onsets[1:], SIXTEENTHS], pitches, strict=True):
        accent = 0.12 if onset % 8 == 0 else 0.06 if onset % 4 == 0 else 0.0
        velocity = float(np.clip(loudness - 0.1 + accent + rng.normal(0, 0.04), 0.3, 1.0))
        notes.append(Note(clock.at_s(bar, onset), held * clock.length_s(bar, onset, end), pitch, velocity))
    return notes
