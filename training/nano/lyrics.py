"""Lyrics that say nothing about the music: the model learns to take any, and to go by the prompt."""

import numpy as np

STRUCTURE = ("[verse]", "[chorus]", "[bridge]", "[intro]", "[outro]", "[inst]")
SYLLABLES = (
    "la",
    "mo",
    "ri",
    "ten",
    "so",
    "way",
    "light",
    "in",
    "the",
    "you",
    "and",
    "night",
    "oh",
    "far",
    "ing",
    "er",
)
MAX_LINES, MAX_WORDS, MAX_SYLLABLES = 4, 5, 3


def random_lyrics(draw: np.random.Generator) -> str:
    """A structure tag, and some lines of syllables under it unless it is `[inst]`."""
    tag = STRUCTURE[int(draw.integers(len(STRUCTURE)))]
    if tag == "[inst]":
        return tag
    return "\n".join([tag, *(_line(draw) for _ in range(int(draw.integers(1, MAX_LINES + 1))))])


def _line(draw: np.random.Generator) -> str:
    words = [
        "".join(draw.choice(SYLLABLES, size=int(draw.integers(1, MAX_SYLLABLES + 1))))
        for _ in range(int(draw.integers(1, MAX_WORDS + 1)))
    ]
    return " ".join(words)
