"""Composing: a seed, and what is wished for, to a piece."""

import math
from dataclasses import dataclass

import numpy as np

from training.nano.piece import Density, Mode, Note, Part, Piece
from training.nano.score.accompaniment import compose_bass, compose_chords
from training.nano.score.drumming import compose_drums
from training.nano.score.harmony import Chord, chord
from training.nano.score.melody import compose_melody
from training.nano.score.styles import STYLES, Style
from training.nano.score.timing import Clock, played_bpm
from training.nano.words import FAMILIES, GENRES, UNNAMED_KEY

FIRST_HELD_OUT_SEED = 10_000_000  # seeds below are for training
_DENSITIES: tuple[Density, ...] = ("sparse", "medium", "busy")
_MODES: tuple[Mode, ...] = ("major", "minor")


@dataclass(frozen=True)
class Mood:
    """What a mood allows (modes, tempo in bpm, densities) and how it sounds.

    `loudness` is 0 to 1, `register` in semitones above the usual; `reverb` None leaves the room to the genre.
    """

    modes: tuple[Mode, ...]
    bpm: tuple[int, int]
    densities: tuple[Density, ...]
    loudness: float
    register: int = 0
    reverb: str | None = None


MOOD_RULES: dict[str, Mood] = {
    "happy": Mood(("major",), (96, 180), ("medium", "busy"), 0.82, register=2),
    "energetic": Mood(("major", "minor"), (116, 180), ("medium", "busy"), 0.92),
    "calm": Mood(("major", "minor"), (60, 96), ("sparse", "medium"), 0.62),
    "dreamy": Mood(("major",), (60, 104), ("sparse",), 0.62, register=3, reverb="hall"),
    "warm": Mood(("major",), (60, 120), ("medium", "busy"), 0.72),
    "sad": Mood(("minor",), (60, 108), ("sparse", "medium"), 0.66),
    "dark": Mood(("minor",), (60, 140), _DENSITIES, 0.76, register=-4, reverb="hall"),
    "dramatic": Mood(("minor",), (84, 180), ("medium", "busy"), 0.90),
}

# The instruments of a family, and the pitches that its melodies keep to.
_LEADS: dict[str, tuple[tuple[str, ...], tuple[int, int]]] = {
    "piano": (("piano",), (62, 84)),
    "guitar": (("acoustic guitar", "electric guitar"), (55, 76)),
    "organ": (("organ",), (60, 81)),
    "strings": (("strings",), (62, 86)),
    "brass": (("brass",), (57, 77)),
    "flute": (("flute",), (72, 93)),
    "synth": (("synth",), (60, 82)),
    "marimba": (("marimba",), (60, 84)),
}
_OWN_CHORDS = ("piano", "guitar", "organ", "marimba")  # leads that can accompany themselves
_CHORD_CENTRE = 57
_CHORD_GAINS = {"clavinet": 0.28}  # it cuts through
_CHORD_GAIN = 0.44


@dataclass(frozen=True)
class Wish:
    """What a piece shall be; what is None is drawn. Contradicting wishes (a sad piece in major) are all granted."""

    duration_s: float = 20.0
    bpm: int | None = None
    key: int | None = None
    mode: Mode | None = None
    lead: str | None = None
    drums: bool | None = None
    genre: str | None = None
    mood: str | None = None
    density: Density | None = None


def compose(seed: int, wish: Wish = Wish()) -> Piece:
    """The piece of a seed: the same seed and wish give the same piece. Raises ValueError if bpm is not in 60..180."""
    if wish.bpm is not None and not 60 <= wish.bpm <= 180:
        raise ValueError(f"{wish.bpm} bpm is outside 60..180")
    rng = np.random.Generator(np.random.PCG64(seed))
    genre = wish.genre or GENRES[int(rng.integers(len(GENRES)))]
    style = STYLES[genre]
    bpm = wish.bpm or _draw_bpm(style, wish.mood, rng)
    mood = wish.mood or _draw_mood(bpm, wish.mode, wish.density, rng)
    rules = MOOD_RULES[mood]
    mode = wish.mode or rules.modes[int(rng.integers(len(rules.modes)))]
    density = wish.density or rules.densities[int(rng.integers(len(rules.densities)))]
    lead = wish.lead or FAMILIES[int(rng.integers(len(FAMILIES)))]
    key = _draw_key(rng) if wish.key is None else wish.key
    has_drums = bool(rng.random() < style.drums) if wish.drums is None else wish.drums
    swing = style.swing
    clock = Clock(played_bpm(bpm), swing)
    chords = _progression(style, key, mode, math.ceil(wish.duration_s * clock.bpm / 240), rng)
    parts = _arrange(style, rules, lead, density, has_drums, chords, clock, rng)
    heard = tuple(_until(part, wish.duration_s) for part in parts)
    reverb = rules.reverb or style.reverb
    tones = tuple(chord.tones for chord in chords)
    return Piece(
        seed, wish.duration_s, bpm, key, mode, lead, has_drums, genre, mood, density, swing, reverb, tones, heard
    )


def _draw_bpm(style: Style, mood: str | None, rng: np.random.Generator) -> int:
    """Four in five from the tempi of the genre, else from all; within those of a mood that is wished for."""
    low, high = style.bpm if rng.random() < 0.8 else (60, 180)
    if mood is not None:
        slowest, fastest = MOOD_RULES[mood].bpm
        low, high = (
            (max(low, slowest), min(high, fastest)) if low <= fastest and slowest <= high else (slowest, fastest)
        )
    return int(rng.integers(low, high + 1))


def _draw_key(rng: np.random.Generator) -> int:
    """Any, and C more often: what captions with a mode alone mean."""
    return UNNAMED_KEY if rng.random() < 0.25 else int(rng.integers(12))


def _draw_mood(bpm: int, mode: Mode | None, density: Density | None, rng: np.random.Generator) -> str:
    """A mood that fits mode and tempo, and the density if one does; either mode is as likely."""
    wanted = mode or _MODES[int(rng.integers(2))]
    fitting = [
        name for name, rules in MOOD_RULES.items() if wanted in rules.modes and rules.bpm[0] <= bpm <= rules.bpm[1]
    ]
    dense = [name for name in fitting if density in MOOD_RULES[name].densities]
    names = dense or fitting
    return names[int(rng.integers(len(names)))]


def _progression(style: Style, key: int, mode: Mode, bars: int, rng: np.random.Generator) -> tuple[Chord, ...]:
    """One chord per bar: a progression of four bars, and after each eight another one for as long."""
    pool = style.progressions[mode]
    order = [pool[int(index)] for index in rng.permutation(len(pool))[:2]]
    degrees = [order[bar // 8 % 2][bar % 4] for bar in range(bars)]
    return tuple(chord(degree, key, mode, style.sevenths) for degree in degrees)


def _arrange(
    style: Style,
    mood: Mood,
    lead: str,
    density: Density,
    has_drums: bool,
    chords: tuple[Chord, ...],
    clock: Clock,
    rng: np.random.Generator,
) -> list[Part]:
    """Who plays what: the lead in front, chords to one side, the bass in the middle, drums behind."""
    instruments, (low, high) = _LEADS[lead]
    instrument = instruments[int(rng.integers(len(instruments)))]
    reach, loudness = (low + mood.register, high + mood.register), mood.loudness
    side = float(rng.choice((-0.45, 0.45)))
    behind, pattern = style.chords[int(rng.integers(len(style.chords)))]
    if behind == "lead":
        behind = instrument if lead in _OWN_CHORDS else "nylon guitar"
    line = style.bass_lines[int(rng.integers(len(style.bass_lines)))]
    melody = compose_melody(chords, clock, density, reach, style.staccato, loudness, rng)
    comping = compose_chords(chords, clock, pattern, _CHORD_CENTRE + mood.register // 2, loudness * 0.85, rng)
    bass = compose_bass(chords, clock, line, loudness, rng)
    parts = [
        Part("lead", instrument, 1.0, -side / 4, 0.6, melody),
        Part("chords", behind, _CHORD_GAINS.get(behind, _CHORD_GAIN), side, 0.6, comping),
        Part("bass", style.bass, 0.75, 0.0, 0.05, bass),
    ]
    if has_drums:
        beat = style.beats[int(rng.integers(len(style.beats)))]
        strokes = compose_drums(len(chords), clock, beat, density, 0.4 + 0.6 * loudness, rng)
        parts.append(Part("drums", style.kit, 0.5, 0.0, 0.25, strokes))
    return parts


def _until(part: Part, end_s: float) -> Part:
    """A part without the notes that would start after the end (or in its last 20 ms)."""
    notes: tuple[Note, ...] = tuple(note for note in part.notes if note.start_s < end_s - 0.02)
    return Part(part.role, part.instrument, part.gain, part.pan, part.send, notes)
