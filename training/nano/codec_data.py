"""Rendered pieces on disk, and random segments of them with their log-mel, for the autoencoder and the vocoder.

`python -m training.nano.codec_data --data DIR` renders what is still missing, in a process per core. A piece is an
int16 `.npy` file of shape (2, N) at 44.1 kHz, named by its seed; the held-out ones lie in a folder of their own.
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from acestep_engine.model.mel import LogMel, MelConfig
from acestep_engine.params import MEL_HOP_SAMPLES
from training.nano.compose import FIRST_HELD_OUT_SEED, Wish, compose
from training.nano.render import render

INT16_PEAK = 32767.0
CPU = torch.device("cpu")
MARGIN_FRAMES = 2  # on either side: what the spectrum of the outermost frames sees, instead of a mirror image

Render = Callable[[int], NDArray[np.float32]]


@dataclass(frozen=True)
class Amount:
    """How much to render. Pieces are numbered from seed 0, the held-out ones from seed 10,000,000."""

    pieces: int = 1000
    held_out_pieces: int = 32
    duration_s: float = 12.0
    processes: int = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Segments:
    """`audio` (B, 2, 512 * F) and its log-mel (B, 2, 128, C + F + C) with C frames of context on either side."""

    audio: Tensor
    mel: Tensor


class Recordings:
    """The rendered pieces of one folder, all long enough for a segment. Raises ValueError if there are none.

    A GPU gets them all into its memory; on a CPU they stay on disk.
    """

    def __init__(self, folder: Path, device: torch.device = CPU) -> None:
        files = sorted(folder.glob("*.npy"))
        if not files:
            raise ValueError(f"{folder} holds no rendered pieces; python -m training.nano.codec_data renders them")
        self.device = device
        self._pieces = [torch.from_numpy(np.load(file, mmap_mode="c")).to(device) for file in files]
        self._log_mel = LogMel(MelConfig()).to(device)

    def __len__(self) -> int:
        return len(self._pieces)

    def draw(self, rng: np.random.Generator, count: int, frames: int, context: int = 0) -> Segments:
        """Segments of `frames` mel frames from random places of random pieces, louder or softer by up to 6 dB."""
        pieces = [self._pieces[i] for i in rng.integers(len(self._pieces), size=count)]
        gains = 10 ** (rng.uniform(-6, 6, size=(count, 1, 1)) / 20) / INT16_PEAK
        wanted = (frames + 2 * (context + MARGIN_FRAMES)) * MEL_HOP_SAMPLES
        parts = torch.stack([_random_part(piece, wanted, rng) for piece in pieces])
        audio = (parts * torch.from_numpy(gains.astype(np.float32)).to(self.device)).clamp(-1, 1)
        mel = self._log_mel(audio)[..., MARGIN_FRAMES:-MARGIN_FRAMES]
        outside = (context + MARGIN_FRAMES) * MEL_HOP_SAMPLES
        return Segments(audio[..., outside : audio.shape[-1] - outside], mel)

    def whole(self, index: int) -> Tensor:
        """The audio (2, N) float32 of a piece."""
        return self._pieces[index] / INT16_PEAK


def training_recordings(data: Path, device: torch.device = CPU) -> Recordings:
    """Those to learn from."""
    return Recordings(data / "train", device)


def held_out_recordings(data: Path, device: torch.device = CPU) -> Recordings:
    """Those to be judged by."""
    return Recordings(data / "held-out", device)


def make_recordings(data: Path, amount: Amount, render_seed: Render) -> int:
    """Render the pieces that are missing from the folder `data`; how many that were."""
    jobs = [(seed, data / "train") for seed in range(amount.pieces)]
    jobs += [(FIRST_HELD_OUT_SEED + i, data / "held-out") for i in range(amount.held_out_pieces)]
    missing = [(seed, file) for seed, part in jobs if not (file := part / f"{seed:08d}.npy").exists()]
    for _, part in jobs:
        part.mkdir(parents=True, exist_ok=True)
    write = partial(_render_to_file, render_seed)
    if amount.processes == 1:
        for job in missing:
            write(job)
        return len(missing)
    with get_context("spawn").Pool(amount.processes) as pool:
        for done, _ in enumerate(pool.imap_unordered(write, missing, chunksize=4), 1):
            if done % 50 == 0:
                print(f"{done} of {len(missing)} pieces rendered", flush=True)
    return len(missing)


def render_music(seed: int, duration_s: float) -> NDArray[np.float32]:
    """The piece of a seed as audio (2, N) at 44.1 kHz."""
    return render(compose(seed, Wish(duration_s=duration_s)))


def _render_to_file(render_seed: Render, job: tuple[int, Path]) -> None:
    seed, file = job
    audio = np.round(np.clip(render_seed(seed), -1, 1) * INT16_PEAK).astype(np.int16)
    unfinished = file.with_suffix(".partial")
    with unfinished.open("wb") as stream:
        np.save(stream, audio)
    os.replace(unfinished, file)


def _random_part(recording: Tensor, samples: int, rng: np.random.Generator) -> Tensor:
    """(2, samples) from anywhere in a recording, with silence after it if it is shorter."""
    start = int(rng.integers(max(recording.shape[1] - samples, 0) + 1))
    part = recording[:, start : start + samples]
    return F.pad(part, (0, samples - part.shape[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pieces", type=int, default=Amount.pieces)
    parser.add_argument("--held-out-pieces", type=int, default=Amount.held_out_pieces)
    parser.add_argument("--seconds", type=float, default=Amount.duration_s)
    options = parser.parse_args()
    amount = Amount(options.pieces, options.held_out_pieces, options.seconds)
    torch.set_num_threads(1)
    made = make_recordings(options.data, amount, partial(render_music, duration_s=options.seconds))
    print(f"{made} pieces of {options.seconds:g} s rendered")


if __name__ == "__main__":
    main()
