"""Rendered pieces as latents on disk, with what may be said of each, for the transformer.

`python -m training.nano.latents --autoencoder DIR --data DIR` renders and encodes what is still missing.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from acestep_engine.checkpoint import AUTOENCODER
from acestep_engine.freed_memory import keep_freed_memory
from acestep_engine.model.autoencoder import LATENT_CHANNELS, LATENT_HEIGHT
from acestep_engine.model.mel import LogMel, MelConfig
from acestep_engine.params import SAMPLES_PER_LATENT
from training.nano.autoencoder import encode, load_dcae
from training.nano.compose import Wish, compose
from training.nano.render import render
from training.nano.score.harmony import PITCH_CLASSES
from training.nano.words import caption

CAPTIONS = 12  # of each piece, to draw from
SHARD_PIECES = 50
MADE_WITH = "autoencoder.sha256"


@dataclass(frozen=True)
class Shard:
    """Pieces `[first, first + SHARD_PIECES)`, all of one length."""

    first: int
    duration_s: float
    folder: Path

    @property
    def latents(self) -> Path:
        return self.folder / f"{self.first:08d}.npy"

    @property
    def notes(self) -> Path:
        return self.folder / f"{self.first:08d}.json"


class LatentClips:
    """What was encoded so far: float16 latents in memory, and captions. Raises ValueError if there is nothing."""

    def __init__(self, folder: Path) -> None:
        self._pieces: list[npt.NDArray[np.float16]] = []
        self._notes: list[dict[str, Any]] = []
        note = folder / MADE_WITH
        self._autoencoder = note.read_text() if note.exists() else ""
        for file in sorted(folder.glob("*.npy")):
            self._pieces += list(np.load(file))
            self._notes += json.loads(file.with_suffix(".json").read_text())
        if not self._pieces:
            raise ValueError(f"{folder} holds no latents; python -m training.nano.latents makes them")

    def __len__(self) -> int:
        return len(self._pieces)

    def latents(self, index: int) -> npt.NDArray[np.float16]:
        """Those of a whole piece, (8, 16, T)."""
        return self._pieces[index]

    def captions(self, index: int) -> list[str]:
        """What may be said of a piece."""
        captions: list[str] = self._notes[index]["captions"]
        return captions

    def bpm(self, index: int) -> int:
        """The tempo that was asked for."""
        bpm: int = self._notes[index]["bpm"]
        return bpm

    def chords(self, index: int) -> npt.NDArray[np.float32]:
        """Which pitch classes each bar's chord has, (bars, 12), 0 or 1."""
        table = np.zeros((len(self._notes[index]["chords"]), PITCH_CLASSES), np.float32)
        for bar, tones in zip(table, self._notes[index]["chords"], strict=True):
            bar[tones] = 1.0
        return table

    def all_captions(self) -> Iterator[str]:
        for index in range(len(self)):
            yield from self.captions(index)

    @property
    def autoencoder(self) -> str:
        """Which one they were encoded with: the digest of its weights."""
        return self._autoencoder


def stay_with(autoencoder: str, folder: Path) -> None:
    """Note in `folder` which autoencoder its content comes from. Exits with a sentence if that was another one."""
    note = folder / MADE_WITH
    if note.exists() and note.read_text() != autoencoder:
        sys.exit(
            f"{folder} comes from another autoencoder, which has been trained again since: remove it to make it anew"
        )
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(autoencoder)


def make_latents(autoencoder: Path, shards: list[Shard]) -> None:
    """Render and encode the shards that are missing, in a process of one thread per core.

    Exits with a sentence if those that are there were encoded with another autoencoder.
    """
    missing = [shard for shard in shards if not shard.latents.exists()]
    (weights,) = (autoencoder / AUTOENCODER).glob("*.safetensors")
    for folder in {shard.folder for shard in shards}:
        stay_with(hashlib.sha256(weights.read_bytes()).hexdigest(), folder)
    jobs = [(autoencoder, shard) for shard in missing]
    with get_context("spawn").Pool(len(os.sched_getaffinity(0))) as pool:
        for done, shard in enumerate(pool.imap_unordered(_make_shard, jobs), 1):
            print(f"{done} of {len(jobs)} shards: {shard.latents.name}", flush=True)


def _make_shard(job: tuple[Path, Shard]) -> Shard:
    folder, shard = job
    torch.set_num_threads(1)
    keep_freed_memory()
    dcae, log_mel = load_dcae(folder), LogMel(MelConfig())
    latents, notes = [], []
    for seed in range(shard.first, shard.first + SHARD_PIECES):
        piece = compose(seed, Wish(duration_s=shard.duration_s))
        audio = torch.from_numpy(render(piece))
        mel = log_mel(F.pad(audio, (0, -audio.shape[1] % SAMPLES_PER_LATENT)))
        with torch.inference_mode():
            latents.append(encode(dcae, mel[None])[0].numpy().astype(np.float16))
        draw = np.random.default_rng(seed)
        told = [caption(piece, draw) for _ in range(CAPTIONS)]
        notes.append({"bpm": piece.bpm, "chords": piece.chords, "captions": told})
    assert latents[0].shape[:2] == (LATENT_CHANNELS, LATENT_HEIGHT)
    shard.notes.write_text(json.dumps(notes))
    partial = shard.latents.with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, np.stack(latents))
    os.replace(partial, shard.latents)
    return shard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--autoencoder", type=Path, required=True, help="a folder that training.nano.autoencoder has written"
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pieces", type=int, default=8000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    firsts = range(options.first, options.first + options.pieces, SHARD_PIECES)
    make_latents(options.autoencoder, [Shard(first, options.seconds, options.data) for first in firsts])


if __name__ == "__main__":
    main()
