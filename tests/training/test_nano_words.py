"""Captions are true, drop out as often as they should, and use no word outside the list."""

import numpy as np

from training.nano.compose import Wish, compose
from training.nano.words import (
    DRUM_WORDS,
    KEYS,
    LEAD_WORDS,
    MODE_WORDS,
    NO_DRUM_WORDS,
    UNNAMED_KEY,
    caption,
    tempo_words,
    vocabulary,
)

PIECES = [compose(seed, Wish(duration_s=4.0)) for seed in range(400)]
RNG = np.random.Generator(np.random.PCG64(1))
CAPTIONS = [(piece, caption(piece, RNG)) for piece in PIECES for _ in range(5)]


def test_a_caption_repeats_with_its_generator() -> None:
    first, second = (caption(PIECES[0], np.random.Generator(np.random.PCG64(7))) for _ in range(2))
    assert first == second


def test_every_word_is_on_the_list() -> None:
    words = vocabulary()
    for _, text in CAPTIONS:
        assert {word for word in text.replace(",", " ").split() if not word.isdigit()} <= words, text


def test_most_captions_carry_tempo_drums_and_mode() -> None:
    def share(said: list[bool]) -> float:
        return sum(said) / len(said)

    assert 0.82 < share([f"{piece.bpm} bpm" in text for piece, text in CAPTIONS]) < 0.88
    assert share([any(tag in DRUM_WORDS + NO_DRUM_WORDS for tag in text.split(", ")) for _, text in CAPTIONS]) > 0.77
    assert 0.71 < share([any(mode in text.split() for mode in ("major", "minor")) for _, text in _split()]) < 0.79
    leads = [any(name in text for name in LEAD_WORDS[piece.lead]) for piece, text in CAPTIONS]
    assert 0.87 < share(leads) < 0.97


def _split() -> list[tuple[object, str]]:
    return [(piece, text.replace(",", " ")) for piece, text in CAPTIONS]


def test_captions_say_nothing_untrue() -> None:
    for piece, text in CAPTIONS:
        tags = text.split(", ")
        assert not set(tags) & set(NO_DRUM_WORDS if piece.drums else DRUM_WORDS)
        words = text.replace(",", " ").split()
        assert {"major": "minor", "minor": "major"}[piece.mode] not in words
        assert not any(f"{key} {piece.mode}" in tags for key in KEYS if key != KEYS[piece.key])
        assert all(int(word) == piece.bpm for word in words if word.isdigit())
        others = {name for family, names in LEAD_WORDS.items() if family != piece.lead for name in names}
        assert not set(tags) & others


def test_a_mode_alone_is_that_of_c() -> None:
    named = {f"{key} {mode}" for key in KEYS for mode in ("major", "minor")}
    alone = {word for words in MODE_WORDS.values() for word in words}
    keys: dict[bool, set[int]] = {True: set(), False: set()}  # by whether a caption names the key
    for piece, text in CAPTIONS:
        tags = {tag.removeprefix("key of ") for tag in text.split(", ")}
        assert not (tags & named and tags & alone)
        if tags & (named | alone):
            keys[bool(tags & named)].add(piece.key)
    assert keys == {True: set(range(12)), False: {UNNAMED_KEY}}


def test_a_tempo_has_a_word_too() -> None:
    assert (tempo_words(60)[0], tempo_words(100)[0], tempo_words(180)[0]) == ("slow", "mid-tempo", "fast")
