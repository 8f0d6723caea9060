"""What is asked of the model: captions of pieces that no training saw, and what they say that can be heard."""

import re
from dataclasses import dataclass

import numpy as np

from training.nano.compose import FIRST_HELD_OUT_SEED, Wish, compose
from training.nano.piece import Mode, Piece
from training.nano.words import DRUM_WORDS, INSTRUMENT_WORDS, LEAD_WORDS, NO_DRUM_WORDS, caption

SONG_S = 10.0
FIRST_SONG_SEED = 1_000

BPM = re.compile(r"\b\d+ bpm\b")
MODE = re.compile(r"\b(major|minor)\b")


@dataclass(frozen=True)
class Asked:
    """What a prompt says; None of what it leaves open. `with_drums` is whether the piece behind it has any."""

    bpm: int | None
    drums: bool | None
    lead: str | None
    mode: Mode | None
    with_drums: bool


@dataclass(frozen=True)
class Trial:
    """A prompt, the seed its song is made with, and the piece whose caption it is."""

    piece: Piece
    prompt: str
    seed: int
    asked: Asked


def held_out_trials(count: int, duration_s: float = SONG_S) -> list[Trial]:
    """The same every time: captions of the first `count` held-out pieces, each of `duration_s`."""
    trials = []
    for number in range(count):
        piece = compose(FIRST_HELD_OUT_SEED + number, Wish(duration_s=duration_s))
        prompt = caption(piece, np.random.Generator(np.random.PCG64(piece.seed)))
        trials.append(Trial(piece, prompt, FIRST_SONG_SEED + number, asked_of(piece, prompt)))
    return trials


def asked_of(piece: Piece, prompt: str) -> Asked:
    """What a caption of the piece says of it. Captions are true, so that only what they mention is looked for."""
    tags = prompt.split(", ")
    names = (*LEAD_WORDS[piece.lead], *(name for words in INSTRUMENT_WORDS.values() for name in words))
    lead = re.compile(rf"(.* (for|by) )?({'|'.join(map(re.escape, names))})( (lead|melody|solo))?")
    return Asked(
        bpm=piece.bpm if BPM.search(prompt) else None,
        drums=piece.drums if any(tag in DRUM_WORDS + NO_DRUM_WORDS for tag in tags) else None,
        lead=piece.lead if any(lead.fullmatch(tag) for tag in tags) else None,
        mode=piece.mode if MODE.search(prompt) else None,
        with_drums=piece.drums,
    )
