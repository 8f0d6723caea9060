"""What one step of the transformer learns from: crops of songs, with captions that have the same number of tokens.

So all rows share one context, and no attention is padded. Every caption of every piece is as likely as any other.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from training.nano.latents import LatentClips
from training.nano.lyrics import random_lyrics
from training.nano.score.timing import bar_frames

CPU = torch.device("cpu")
TOKENS_PER_STEP = 3456  # latent frames
CROPS = (64, 108, 162, 215)  # frames: 6 to 20 s
FROM_THE_START = 0.9  # of the crops: so do songs that are asked for, and their beats lie where the tempo says
UNCONDITIONED = 0.12  # of the rows
WITH_LYRICS = 0.1  # of the steps: lyrics say nothing about what is heard, must be accepted, and change little


@dataclass(frozen=True, eq=False)
class Rows:
    """Songs of one length with what is said of them."""

    latents: Tensor  # (R, 8, 16, T) float32
    bars: Tensor  # (R, T) float32: how many have passed where each frame begins
    chords: Tensor  # (R, T, 12) float32: which pitch classes the chord of its bar has, 0 or 1
    prompts: Tensor  # (R, L) int64, tokens
    conditioned: Tensor  # (R,) bool
    lyrics: str  # of all


class RowSource:
    """Draws rows from clips, by the tokens of their captions."""

    def __init__(
        self,
        clips: LatentClips,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device = CPU,
        tokens_per_step: int = TOKENS_PER_STEP,
    ) -> None:
        self.device = device
        self._clips, self._tokens_per_step = clips, tokens_per_step
        captions = [(index, text) for index in range(len(clips)) for text in clips.captions(index)]
        tokens = tokenizer([text for _, text in captions]).input_ids
        by_length: defaultdict[int, list[int]] = defaultdict(list)
        for number, ids in enumerate(tokens):
            by_length[len(ids)].append(number)
        self._pieces = [index for index, _ in captions]
        self._bar_frames = np.asarray([bar_frames(clips.bpm(index)) for index in self._pieces])
        self._tokens = [np.asarray(ids, np.int16) for ids in tokens]
        self._alike = {length: np.asarray(numbers) for length, numbers in by_length.items()}

    def draw(self, rng: np.random.Generator) -> Rows:
        """The rows of one step: as many as make up about `tokens_per_step` frames."""
        frames = int(rng.choice(CROPS))
        count = max(1, self._tokens_per_step // frames)
        alike = self._alike[len(self._tokens[int(rng.integers(len(self._tokens)))])]
        chosen = rng.choice(alike, size=count)
        firsts = [self._first_frame(self._pieces[number], frames, rng) for number in chosen]
        crops = [
            self._clips.latents(self._pieces[number])[..., first : first + frames]
            for number, first in zip(chosen, firsts, strict=True)
        ]
        bars = np.stack([first + np.arange(frames) for first in firsts]) / self._bar_frames[chosen][:, None]
        chords = [
            self._clips.chords(self._pieces[number])[of_song.astype(int)]
            for number, of_song in zip(chosen, bars, strict=True)
        ]
        prompts = np.stack([self._tokens[number] for number in chosen]).astype(np.int64)
        return Rows(
            torch.from_numpy(np.stack(crops)).to(self.device).float(),
            torch.from_numpy(bars).to(self.device).float(),
            torch.from_numpy(np.stack(chords)).to(self.device),
            torch.from_numpy(prompts).to(self.device),
            torch.from_numpy(rng.random(count) >= UNCONDITIONED).to(self.device),
            random_lyrics(rng) if rng.random() < WITH_LYRICS else "",
        )

    def _first_frame(self, piece: int, frames: int, rng: np.random.Generator) -> int:
        if rng.random() < FROM_THE_START:
            return 0
        return int(rng.integers(self._clips.latents(piece).shape[-1] - frames + 1))
