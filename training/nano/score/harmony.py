"""Scales, chords and how they are voiced."""

from dataclasses import dataclass

from training.nano.piece import Mode

PITCH_CLASSES = 12
SCALES: dict[Mode, tuple[int, ...]] = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}

# Semitones of root, third, fifth and seventh above the tonic.
_DEGREES: dict[str, tuple[int, int, int, int]] = {
    "I": (0, 4, 7, 11), "ii": (2, 5, 9, 12), "iii": (4, 7, 11, 14), "IV": (5, 9, 12, 16), "V": (7, 11, 14, 17),
    "vi": (9, 12, 16, 19),
    "i": (0, 3, 7, 10), "iio": (2, 5, 8, 12), "III": (3, 7, 10, 14), "iv": (5, 8, 12, 15), "v": (7, 10, 14, 17),
    "VI": (8, 12, 15, 19), "VII": (10, 14, 17, 20),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Chord:
    """A chord in a key: pitch classes of its tones, the root first, and of the scale that goes with it, ascending."""

    tones: tuple[int, ...]
    scale: tuple[int, ...]

    @property
    def root(self) -> int:
        return self.tones[0]


def chord(degree: str, key: int, mode: Mode, sevenths: bool) -> Chord:
    """A degree such as `"IV"` in a key; over a major V in minor the scale has the leading tone. Raises KeyError."""
    tones = _DEGREES[degree][: 4 if sevenths else 3]
    scale = SCALES[mode]
    if mode == "minor" and degree == "V":
        scale = (0, 2, 3, 5, 7, 8, 11)
    return Chord(tuple((key + tone) % 12 for tone in tones), tuple(sorted((key + step) % 12 for step in scale)))


def nearest(pitch_classes: tuple[int, ...], pitch: float) -> int:
    """The MIDI pitch of one of these classes that is nearest to a pitch (the lower of two)."""
    candidates = [round(pitch) + offset for offset in range(-6, 7)]
    return min((c for c in candidates if c % 12 in pitch_classes), key=lambda c: (abs(c - pitch), c))


def voice(chord: Chord, before: tuple[int, ...], centre: int) -> tuple[int, ...]:
    """A chord in close position: the inversion around `centre` that moves least from the voicing before it."""
    inversions = []
    for bottom in range(len(chord.tones)):
        classes = chord.tones[bottom:] + chord.tones[:bottom]
        for lowest in range(centre - 9, centre + 4):
            if lowest % 12 == classes[0]:
                pitches = [lowest]
                for tone in classes[1:]:
                    pitches.append(pitches[-1] + 1 + (tone - pitches[-1] - 1) % 12)
                inversions.append(tuple(pitches))
    goal = sum(before) / len(before) if before else float(centre)
    return min(inversions, key=lambda pitches: (abs(sum(pitches) / len(pitches) - goal), pitches))


def ladder(chord: Chord, low: int, high: int) -> tuple[int, ...]:
    """The pitches of the chord's scale from `low` to `high`, ascending."""
    return tuple(pitch for pitch in range(low, high + 1) if pitch % 12 in chord.scale)
