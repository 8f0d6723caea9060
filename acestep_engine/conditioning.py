"""What passes between the text encoder and the engine: plain arrays, no model library to import."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from acestep_engine.params import GenerationParams

HiddenStates = npt.NDArray[np.float32]
TokenIds = npt.NDArray[np.int64]


@dataclass(frozen=True)
class EncodeRequest:
    """`weaken` asks for the weakened states as well; `vocal_language` is for lines that do not name their own."""

    prompt: str
    lyrics: str
    weaken: bool = False
    vocal_language: str | None = None

    @classmethod
    def of_song(cls, song: GenerationParams) -> Self:
        return cls(song.prompt, song.lyrics, song.weakens_text, song.vocal_language)


@dataclass(frozen=True)
class Conditioning:
    """What a generation is conditioned on. All numpy, so that it crosses processes without a copy.

    `text` and `text_weakened` (L, C) float32, L at most 256; `lyric_ids` and `lyric_mask` (N,) int64, N at least 1.
    """

    text: HiddenStates
    text_weakened: HiddenStates | None
    lyric_ids: TokenIds
    lyric_mask: TokenIds
