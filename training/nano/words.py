"""The closed set of words that captions are made of, and the caption of a piece."""

import numpy as np

from training.nano.piece import Piece

FAMILIES = ("piano", "guitar", "organ", "strings", "brass", "flute", "synth", "marimba")
GENRES = ("pop", "rock", "jazz", "funk", "house", "techno", "ambient", "folk", "lo-fi", "reggae", "classical")
MOODS = ("happy", "energetic", "calm", "dreamy", "warm", "sad", "dark", "dramatic")
KEYS = ("c", "c sharp", "d", "e flat", "e", "f", "f sharp", "g", "a flat", "a", "b flat", "b")
UNNAMED_KEY = 0  # a caption that tells the mode alone means this tonic

# What a caption may call them. A word stands under one heading only: it always means the same sound.
LEAD_WORDS: dict[str, tuple[str, ...]] = {
    "piano": ("piano", "grand piano", "acoustic piano"),
    "guitar": ("guitar", "guitar", "plucked guitar"),
    "organ": ("organ", "drawbar organ", "hammond organ"),
    "strings": ("strings", "violins", "string section", "violin"),
    "brass": ("brass", "trumpet", "horns", "brass section"),
    "flute": ("flute", "flute", "wooden flute"),
    "synth": ("synth", "synthesizer", "analog synth"),
    "marimba": ("marimba", "mallets", "wooden mallets"),
}
INSTRUMENT_WORDS: dict[str, tuple[str, ...]] = {
    "acoustic guitar": ("acoustic guitar",),
    "electric guitar": ("electric guitar",),
}
GENRE_WORDS: dict[str, tuple[str, ...]] = {
    "pop": ("pop", "pop song"),
    "rock": ("rock",),
    "jazz": ("jazz", "swing jazz"),
    "funk": ("funk", "funky"),
    "house": ("house", "deep house", "dance"),
    "techno": ("techno", "electronic"),
    "ambient": ("ambient", "atmospheric"),
    "folk": ("folk", "country"),
    "lo-fi": ("lo-fi", "lofi", "chillhop"),
    "reggae": ("reggae", "dub"),
    "classical": ("classical", "baroque"),
}
MOOD_WORDS: dict[str, tuple[str, ...]] = {
    "happy": ("happy", "cheerful", "joyful"),
    "energetic": ("energetic", "upbeat", "lively"),
    "calm": ("calm", "peaceful", "relaxed"),
    "dreamy": ("dreamy", "floating"),
    "warm": ("warm", "gentle"),
    "sad": ("sad", "melancholic", "sorrowful"),
    "dark": ("dark", "gloomy", "mysterious"),
    "dramatic": ("dramatic", "tense", "intense"),
}
DENSITY_WORDS: dict[str, tuple[str, ...]] = {
    "sparse": ("sparse", "minimal"),
    "medium": ("flowing",),
    "busy": ("busy", "dense", "many notes"),
}
CHORD_WORDS: dict[str, tuple[str, ...]] = {
    "electric piano": ("electric piano chords",),
    "pad": ("pads", "warm pads"),
    "clavinet": ("clavinet chords",),
    "nylon guitar": ("plucked chords",),
}
DRUM_WORDS = ("drums", "with drums", "drum beat", "drum kit")
NO_DRUM_WORDS = ("no drums", "without drums", "drumless", "no percussion")
MODE_WORDS: dict[str, tuple[str, ...]] = {
    "major": ("major key", "major", "in a major key"),
    "minor": ("minor key", "minor", "in a minor key"),
}
SWING_WORDS = ("swing", "swung")
TEMPO_WORDS: tuple[tuple[range, tuple[str, ...]], ...] = (
    (range(60, 85), ("slow", "slow tempo")),
    (range(85, 116), ("mid-tempo", "medium tempo")),
    (range(116, 181), ("fast", "fast tempo", "uptempo")),
)
FRAMES = (
    "{lead} lead", "{lead} melody", "{lead} solo", "a {mood} {genre} piece for {lead}", "a piece for {lead}",
    "{genre} played by {lead}", "{bpm} bpm", "tempo {bpm} bpm", "{key} {mode}", "key of {key} {mode}", "instrumental",
)  # fmt: skip


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def vocabulary() -> frozenset[str]:
    """Every word (split at spaces and commas, lower case, numbers left out) that a caption may hold."""
    tables = (LEAD_WORDS, INSTRUMENT_WORDS, GENRE_WORDS, MOOD_WORDS, DENSITY_WORDS, CHORD_WORDS, MODE_WORDS)
    phrases = [phrase for table in tables for phrases in table.values() for phrase in phrases]
    phrases += [phrase for _, phrases in TEMPO_WORDS for phrase in phrases]
    phrases += [*KEYS, *DRUM_WORDS, *NO_DRUM_WORDS, *SWING_WORDS, *FRAMES]
    return frozenset(word for phrase in phrases for word in phrase.split() if not word.startswith("{"))


def tempo_words(bpm: int) -> tuple[str, ...]:
    """What a tempo is called without a number. Raises ValueError outside 60..180."""
    for bpms, words in TEMPO_WORDS:
        if bpm in bpms:
            return words
    raise ValueError(f"{bpm} bpm is outside 60..180")


def caption(piece: Piece, rng: np.random.Generator) -> str:
    """Tags of a piece in random order, separated by commas, sometimes led by a phrase; each of them is true.

    85 % carry the tempo in bpm, 90 % the lead instrument, 80 % whether there are drums, 75 % the mode.
    """
    tags = _character(piece, rng)
    if rng.random() < 0.85:
        tags.append(_pick(("{bpm} bpm", "{bpm} bpm", "{bpm} bpm", "tempo {bpm} bpm"), rng).format(bpm=piece.bpm))
    if rng.random() < 0.8:
        tags.append(_pick(DRUM_WORDS if piece.drums else NO_DRUM_WORDS, rng))
    if rng.random() < 0.75:
        tags.append(_mode(piece, rng))
    rng.shuffle(tags)
    return ", ".join(_opening(piece, rng) + tags)


def _character(piece: Piece, rng: np.random.Generator) -> list[str]:
    """What is said of a piece now and then: density, tempo as a word, chords, swing."""
    tags = []
    if rng.random() < 0.3:
        tags.append(_pick(DENSITY_WORDS[piece.density], rng))
    if rng.random() < 0.25:
        tags.append(_pick(tempo_words(piece.bpm), rng))
    if rng.random() < 0.1:
        tags.append("instrumental")
    chords = piece.part("chords")
    if chords is not None and chords.instrument in CHORD_WORDS and rng.random() < 0.15:
        tags.append(_pick(CHORD_WORDS[chords.instrument], rng))
    if piece.swing > 0.0 and rng.random() < 0.4:
        tags.append(_pick(SWING_WORDS, rng))
    return tags


def _mode(piece: Piece, rng: np.random.Generator) -> str:
    """The mode after its key, or alone if that is the one that goes without saying."""
    if piece.key == UNNAMED_KEY and rng.random() < 0.7:
        return _pick(MODE_WORDS[piece.mode], rng)
    return _pick(("{key} {mode}", "key of {key} {mode}"), rng).format(key=KEYS[piece.key], mode=piece.mode)


def _opening(piece: Piece, rng: np.random.Generator) -> list[str]:
    """Lead, genre and mood: as tags in any order, or as one phrase."""
    lead_part = piece.part("lead")
    names = LEAD_WORDS[piece.lead] + INSTRUMENT_WORDS.get(lead_part.instrument if lead_part else "", ())
    lead = _pick(names, rng)
    genre, mood = _pick(GENRE_WORDS[piece.genre], rng), _pick(MOOD_WORDS[piece.mood], rng)
    if rng.random() < 0.2:
        frame = _pick(("a {mood} {genre} piece for {lead}", "a piece for {lead}", "{genre} played by {lead}"), rng)
        return [frame.format(lead=lead, genre=genre, mood=mood)]
    tags = []
    if rng.random() < 0.875:  # with the phrases above: 90 %
        tags.append(_pick(("{lead}", "{lead}", "{lead} lead", "{lead} melody", "{lead} solo"), rng).format(lead=lead))
    if rng.random() < 0.8:
        tags.append(genre)
    if rng.random() < 0.6:
        tags.append(mood)
    rng.shuffle(tags)
    return tags
