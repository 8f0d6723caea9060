"""A piece of music as a score in seconds: what is composed, captioned and rendered."""

from dataclasses import dataclass
from typing import Literal

Mode = Literal["major", "minor"]
Density = Literal["sparse", "medium", "busy"]
Role = Literal["lead", "chords", "bass", "drums"]


@dataclass(frozen=True, slots=True)
class Note:
    """One note: `start_s` and `duration_s` in seconds, `pitch` a MIDI number, `velocity` in (0, 1].

    In a part of drums, pitch is the General MIDI percussion key and the duration is not used.
    """

    start_s: float
    duration_s: float
    pitch: int
    velocity: float


@dataclass(frozen=True, slots=True)
class Part:
    """What one instrument plays: `gain` and `send` (to the reverb) linear, `pan` from -1 (left) to 1 (right)."""

    role: Role
    instrument: str
    gain: float
    pan: float
    send: float
    notes: tuple[Note, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """A composed piece and the truths about it that a caption may say.

    `bpm` is 60 to 180, `key` the tonic's pitch class (0 is C), `lead` one of words.FAMILIES, `swing` how far the
    second eighth of a beat comes late, in beats (0 straight, 1/6 triplets); `reverb` names a room of effects.ROOMS;
    `chords` are the pitch classes of each bar's chord, the root first.
    """

    seed: int
    duration_s: float
    bpm: int
    key: int
    mode: Mode
    lead: str
    drums: bool
    genre: str
    mood: str
    density: Density
    swing: float
    reverb: str
    chords: tuple[tuple[int, ...], ...]
    parts: tuple[Part, ...]

    def part(self, role: Role) -> Part | None:
        """The part that plays this role; None if nobody does."""
        return next((part for part in self.parts if part.role == role), None)
