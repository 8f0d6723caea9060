"""What all measures look at. Audio is (2, N), float32, at 44.1 kHz throughout this package."""

import math
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from acestep_engine.model.mel import LogMel, MelConfig
from acestep_engine.params import MODEL_SAMPLE_RATE_HZ

Audio = npt.NDArray[np.float32]

RATE_HZ = MODEL_SAMPLE_RATE_HZ

NEPERS_PER_DB = math.log(10) / 20
AUDIBLE_DB = -60.0  # beside the loudest cell of a spectrogram: what is softer is not judged


def magnitudes(audio: Audio, window: int, hop: int) -> Tensor:
    """Magnitudes (window / 2 + 1, T) of both channels' mean, so that a full-scale sine reaches about 1.

    Frames are centred, over silence beyond the ends. Raises ValueError for audio that is not (2, N >= 1).
    """
    check_stereo(audio)
    mono = torch.from_numpy(np.ascontiguousarray(audio, np.float32)).mean(dim=0)
    shape = torch.hann_window(window)
    spectrum = torch.stft(mono, window, hop, window=shape, center=True, pad_mode="constant", return_complex=True)
    return spectrum.abs() * (2 / shape.sum())


def band_rows(window: int, low_hz: float, high_hz: float) -> slice:
    """The rows of `magnitudes` from `low_hz` up to `high_hz`."""
    return slice(math.ceil(low_hz * window / RATE_HZ), math.ceil(high_hz * window / RATE_HZ))


def log_mel(audio: Audio) -> Tensor:
    """The engine's log-mel (2, 128, N / 512), in nepers. Raises ValueError for audio that is not (2, N >= 1)."""
    check_stereo(audio)
    mel: Tensor = _analysis()(torch.from_numpy(np.ascontiguousarray(audio, np.float32)))
    return mel


def check_stereo(audio: Audio) -> None:
    """Raise ValueError unless audio is (2, N >= 1)."""
    if audio.ndim != 2 or audio.shape[0] != 2 or audio.shape[1] == 0:
        raise ValueError(f"audio has shape {audio.shape}, expected (2, N >= 1)")


@cache
def _analysis() -> LogMel:
    return LogMel(MelConfig())
