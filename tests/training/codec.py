"""Tiny codecs to train, and recordings to train them on: chords of decaying tones."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.nano import autoencoder, vocoder
from training.nano.codec_data import Amount, make_recordings

SMALL_DCAE: dict[str, Any] = autoencoder.CONFIG | {
    "attention_head_dim": 8,
    "encoder_block_out_channels": [8, 8, 16, 16],
    "decoder_block_out_channels": [8, 8, 16, 16],
    "encoder_layers_per_block": [0, 1, 1, 1],
    "decoder_layers_per_block": [0, 1, 1, 1],
}
SMALL_VOCODER: dict[str, Any] = vocoder.CONFIG | {
    "depths": [1, 1],
    "dims": [16, 24],
    "num_mels": 24,
    "kernel_sizes": [7],
    "upsample_rates": [8, 8, 8],
    "upsample_kernel_sizes": [16, 16, 16],
    "upsample_initial_channel": 32,
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1]],
}
SECONDS = 1.5


def chord(seed: int) -> NDArray[np.float32]:
    """Three tones of a seed that decay four times, left and right not alike: (2, N)."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(int(SECONDS * 44_100)) / 44_100
    tones = np.sin(2 * np.pi * rng.uniform(100, 2000, size=(3, 1)) * time_s) * np.exp(-6 * (time_s % (SECONDS / 4)))
    return (rng.uniform(0.05, 0.2, size=(2, 3)) @ tones).astype(np.float32)


def chords(folder: Path) -> Path:
    """A folder of such recordings."""
    make_recordings(folder, Amount(pieces=4, held_out_pieces=2, processes=1), chord)
    return folder
