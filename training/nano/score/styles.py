"""What makes a genre: tempo, chords, who plays behind the lead, and the patterns of a bar.

A pattern is a bar in sixteenths: `X` an accent, `x` a note, `o` a soft one, `.` nothing.
"""

from dataclasses import dataclass

from training.nano.piece import Mode

Progression = tuple[str, ...]


@dataclass(frozen=True)
class Style:
    """A genre. `swing` is how far the second eighth of a beat comes late, in beats; of each tuple one is taken.

    `chords` pairs an instrument with a pattern of PATTERNS or ARPEGGIOS; `"lead"` is the lead's own instrument, where
    it can play chords.
    """

    bpm: tuple[int, int]
    drums: float  # the share of pieces that have them
    kit: str
    beats: tuple[str, ...]
    chords: tuple[tuple[str, str], ...]
    bass: str
    bass_lines: tuple[str, ...]
    progressions: dict[Mode, tuple[Progression, ...]]
    reverb: str
    sevenths: bool = False
    swing: float = 0.0
    staccato: float = 0.92  # the share of the time to the next note that a melody note is held


_POP: dict[Mode, tuple[Progression, ...]] = {
    "major": (("I", "V", "vi", "IV"), ("I", "vi", "IV", "V"), ("I", "IV", "I", "V"), ("I", "iii", "IV", "V")),
    "minor": (("i", "VI", "III", "VII"), ("i", "iv", "VI", "V"), ("i", "VII", "VI", "V"), ("i", "VI", "iv", "V")),
}
_ROCK: dict[Mode, tuple[Progression, ...]] = {
    "major": (("I", "IV", "V", "IV"), ("I", "V", "IV", "I"), ("I", "IV", "I", "V")),
    "minor": (("i", "VII", "VI", "VII"), ("i", "iv", "i", "V"), ("i", "VI", "VII", "i")),
}
_JAZZ: dict[Mode, tuple[Progression, ...]] = {
    "major": (("I", "vi", "ii", "V"), ("I", "IV", "ii", "V"), ("I", "ii", "V", "I")),
    "minor": (("i", "iv", "iio", "V"), ("i", "VI", "iio", "V"), ("i", "iio", "V", "i")),
}
_GROOVE: dict[Mode, tuple[Progression, ...]] = {
    "major": (("I", "IV", "I", "IV"), ("I", "ii", "IV", "I"), ("I", "IV", "V", "I")),
    "minor": (("i", "iv", "i", "iv"), ("i", "VII", "iv", "i"), ("i", "i", "iv", "v")),
}
_CLASSICAL: dict[Mode, tuple[Progression, ...]] = {
    "major": (("I", "IV", "V", "I"), ("I", "vi", "ii", "V"), ("I", "V", "I", "V")),
    "minor": (("i", "iv", "V", "i"), ("i", "VI", "iv", "V"), ("i", "V", "i", "V")),
}

# How chords are struck together.
PATTERNS: dict[str, str] = {
    "held": "X...............",
    "halves": "X.......x.......",
    "quarters": "X...x...x...x...",
    "eighths": "X.x.x.x.X.x.x.x.",
    "strum": "X...x.xo..xoX.x.",
    "offbeats": "..X...X...X...X.",
    "skank": "....X.......X...",
    "charleston": "X.....x.....o...",
    "late": "..x...X...x...x.",
    "stabs": "X..x..x...x..x..",
    "funk": "X..x..ox..x.o.x.",
}
# Which tone of the chord (counted from the lowest) comes on each eighth.
ARPEGGIOS: dict[str, tuple[int, ...]] = {
    "up": (0, 1, 2, 1, 3, 2, 1, 2),
    "alberti": (0, 2, 1, 2, 0, 2, 1, 2),
    "slow": (0, -1, 1, -1, 2, -1, 1, -1),
}

STYLES: dict[str, Style] = {
    "pop": Style(
        (84, 132), 0.7, "acoustic kit", ("backbeat", "eighths"), (("electric piano", "quarters"), ("pad", "held")),
        "bass guitar", ("eighths", "push"), _POP, "studio",
    ),
    "rock": Style(
        (100, 168), 0.75, "acoustic kit", ("rock", "eighths"), (("nylon guitar", "eighths"), ("clavinet", "strum")),
        "bass guitar", ("eighths",), _ROCK, "studio",
    ),
    "jazz": Style(
        (72, 180), 0.6, "acoustic kit", ("ride",), (("electric piano", "charleston"), ("electric piano", "late")),
        "upright bass", ("walking",), _JAZZ, "studio", sevenths=True, swing=1 / 6,
    ),
    "funk": Style(
        (88, 120), 0.75, "acoustic kit", ("funk",), (("clavinet", "funk"), ("clavinet", "stabs")),
        "bass guitar", ("funk",), _GROOVE, "studio", sevenths=True, staccato=0.75,
    ),
    "house": Style(
        (116, 130), 0.8, "electronic kit", ("four",), (("electric piano", "offbeats"), ("pad", "stabs")),
        "synth bass", ("offbeats",), _POP, "plate", sevenths=True, staccato=0.85,
    ),
    "techno": Style(
        (126, 148), 0.8, "electronic kit", ("techno",), (("pad", "stabs"), ("clavinet", "stabs")),
        "synth bass", ("rolling",), _GROOVE, "plate", staccato=0.72,
    ),
    "ambient": Style(
        (60, 92), 0.3, "electronic kit", ("half",), (("pad", "held"), ("electric piano", "up")),
        "synth bass", ("pulse",), _POP, "hall",
    ),
    "folk": Style(
        (76, 140), 0.45, "acoustic kit", ("train", "eighths"), (("nylon guitar", "strum"), ("nylon guitar", "up")),
        "upright bass", ("two",), _ROCK, "studio",
    ),
    "lo-fi": Style(
        (64, 92), 0.75, "acoustic kit", ("lazy",), (("electric piano", "halves"), ("electric piano", "charleston")),
        "bass guitar", ("push",), _JAZZ, "plate", sevenths=True, swing=0.13,
    ),
    "reggae": Style(
        (66, 96), 0.7, "acoustic kit", ("one drop",), (("clavinet", "skank"), ("nylon guitar", "offbeats")),
        "bass guitar", ("dub",), _GROOVE, "plate",
    ),
    "classical": Style(
        (66, 152), 0.2, "acoustic kit", ("march",), (("lead", "alberti"), ("lead", "up"), ("nylon guitar", "alberti")),
        "upright bass", ("two",), _CLASSICAL, "hall",
    ),
}  # fmt: skip

# Bars of a kit. Keys: k kick, s snare, r rim, c clap, h closed hat, o open hat, d ride, a shaker.
BEATS: dict[str, dict[str, str]] = {
    "backbeat": {"k": "X.....x.X.......", "s": "....X.......X...", "h": "x.x.x.x.x.x.x.x."},
    "eighths": {"k": "X.......X.x.....", "s": "....X.......X...", "h": "X.o.X.o.X.o.X.o."},
    "rock": {"k": "X.x.....X.x.....", "s": "....X.......X...", "h": "X.x.X.x.X.x.X.x."},
    "ride": {"k": "o...o...o...o...", "s": ".......o......o.", "d": "X...X.x.X...X.x.", "h": "....X.......X..."},
    "funk": {"k": "X.x.......x..x..", "s": "....X..o.o..X..o", "h": "X.xxX.xxX.xxX.xx"},
    "four": {"k": "X...X...X...X...", "c": "....X.......X...", "o": "..X...X...X...X.", "a": "x.xxx.xxx.xxx.xx"},
    "techno": {"k": "X...X...X...X...", "c": "....x.......X...", "h": "xxXxxxXxxxXxxxXx"},
    "half": {"k": "X...............", "r": "........X.......", "a": "x...o...x...o..."},
    "train": {"k": "X.......X.......", "s": "o.oox.ooo.oox.oo"},
    "lazy": {"k": "X......xx.......", "s": "....X.......X...", "h": "x.o.x.o.x.o.x.oo"},
    "one drop": {"k": "........X.......", "r": "........X.......", "h": "x.x.x.x.x.x.x.x."},
    "march": {"k": "X.......X.......", "s": "....x.oo....x.x."},
}

# Bars of a bass: 1 root, 5 fifth, 8 octave, 3 third; the note lasts until the next one.
BASS_LINES: dict[str, str] = {
    "pulse": "1...1...1...5...",
    "two": "1.......5.......",
    "eighths": "1.1.1.1.1.1.1.5.",
    "push": "1.....1.1.....5.",
    "funk": "1..8..1...5..8..",
    "offbeats": "..1...1...1...8.",
    "rolling": "..11..11..11..18",
    "dub": "1.....5...8.1...",
}
