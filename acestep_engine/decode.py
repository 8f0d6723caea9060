"""Latents to audio: in one piece, or in the published overlapping windows that bound the memory of long songs."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from acestep_engine.errors import LatentShapeError, NumericalError
from acestep_engine.model.autoencoder import LATENT_CHANNELS, LATENT_HEIGHT, SAMPLES_PER_LATENT, MusicAutoencoder
from acestep_engine.params import (
    MEL_FRAMES_PER_LATENT,
    MEL_HOP_SAMPLES,
    MODEL_SAMPLE_RATE_HZ,
    OUTPUT_SAMPLE_RATE_HZ,
)

OVERLAPPED_OVER_S = 48.0  # the published pipeline decodes shorter songs in one piece even when asked to overlap

LATENT_WINDOW = 512
LATENT_HOP = 256
LATENT_MARGIN = 128  # at each inner edge of a window these latent frames are context, and their mel is dropped

MEL_WINDOW = 512
AUDIO_OVERLAP = 1024
MEL_HOP = MEL_WINDOW - 2 * AUDIO_OVERLAP // MEL_HOP_SAMPLES
CROSSFADE = 128


@dataclass(frozen=True)
class Window:
    """Decode the latent frames [start, stop), keep the result of [keep_start, keep_stop)."""

    start: int
    stop: int
    keep_start: int
    keep_stop: int


@torch.inference_mode()
def decode_latents(
    autoencoder: MusicAutoencoder,
    latents: Tensor,
    *,
    overlapped: bool = False,
    sample_rate_hz: int = OUTPUT_SAMPLE_RATE_HZ,
) -> Tensor:
    """Latents (8, 16, T) to stereo audio (2, N) at `sample_rate_hz`, float32, on the autoencoder's device.

    N is T * 4096 at 44.1 kHz, converted and rounded up, or down when overlapped, as published. The vocoder bounds the
    audio to [-1, 1]; resampling may overshoot a little.
    Raises LatentShapeError for another shape or T = 0, NumericalError if latents or audio are not all finite.
    """
    check_latents(latents)
    decode = _decode_overlapped if overlapped else _decode_whole
    audio = decode(autoencoder, latents, sample_rate_hz)
    if not audio.isfinite().all():
        raise NumericalError("the decoder answered NaN or infinity")
    return audio


def check_latents(latents: Tensor) -> None:
    """Raise LatentShapeError unless latents are (8, 16, T >= 1), NumericalError unless they are finite."""
    shape = tuple(latents.shape)
    if len(shape) != 3 or shape[:2] != (LATENT_CHANNELS, LATENT_HEIGHT) or shape[2] == 0:
        raise LatentShapeError(f"latents have shape {shape}, expected ({LATENT_CHANNELS}, {LATENT_HEIGHT}, T >= 1)")
    if not latents.isfinite().all():
        raise NumericalError("the latents hold NaN or infinity")


def _decode_whole(autoencoder: MusicAutoencoder, latents: Tensor, sample_rate_hz: int) -> Tensor:
    audio = autoencoder.mel_to_audio(autoencoder.latents_to_mel(latents))
    return autoencoder.resample(audio, MODEL_SAMPLE_RATE_HZ, sample_rate_hz)


def _decode_overlapped(autoencoder: MusicAutoencoder, latents: Tensor, sample_rate_hz: int) -> Tensor:
    frames = latents.shape[-1]
    mel = torch.cat([_mel_of_window(autoencoder, latents, window) for window in latent_windows(frames)], dim=-1)
    audio = _vocode_overlapped(autoencoder, mel)
    # Resampled with what follows the end, then cut: the filter's last taps reach beyond it.
    audio = autoencoder.resample(audio, MODEL_SAMPLE_RATE_HZ, sample_rate_hz)
    return audio[:, : frames * SAMPLES_PER_LATENT * sample_rate_hz // MODEL_SAMPLE_RATE_HZ]


def latent_windows(frames: int) -> Iterator[Window]:
    """Windows that overlap by half and together keep every one of `frames` latent frames once.

    Up to 512 frames are one window. The last window may be shorter than the others.
    """
    starts = range(0, max(1, frames - LATENT_HOP), LATENT_HOP)
    for start in starts:
        first, last = start == 0, start == starts[-1]
        stop = min(start + LATENT_WINDOW, frames)
        yield Window(start, stop, start if first else start + LATENT_MARGIN, stop if last else stop - LATENT_MARGIN)


def _mel_of_window(autoencoder: MusicAutoencoder, latents: Tensor, window: Window) -> Tensor:
    mel = autoencoder.latents_to_mel(latents[..., window.start : window.stop])
    kept = slice(window.keep_start - window.start, window.keep_stop - window.start)
    return mel[..., kept.start * MEL_FRAMES_PER_LATENT : kept.stop * MEL_FRAMES_PER_LATENT]


def _vocode_overlapped(autoencoder: MusicAutoencoder, mel: Tensor) -> Tensor:
    """Mel (2, 128, T) to audio (2, N >= 512 * T): windows of 512 frames, faded into each other over 128 samples.

    Neighbours share 2048 samples, of which each drops its outer 1024: no edge of a window is heard. Past the end of the
    song the last window is filled with zeros, and N reaches to the end of it.
    """
    frames = mel.shape[-1]
    fade_in = torch.linspace(0, 1, CROSSFADE, device=mel.device)
    starts = range(0, frames, MEL_HOP)
    pieces: list[Tensor] = []
    for start in starts:
        block = mel[..., start : start + MEL_WINDOW]
        audio = autoencoder.mel_to_audio(F.pad(block, (0, MEL_WINDOW - block.shape[-1])))
        if pieces:
            tail = pieces[-1][:, -CROSSFADE:]
            head = audio[:, AUDIO_OVERLAP - CROSSFADE : AUDIO_OVERLAP]
            tail.copy_(tail * fade_in.flip(0) + head * fade_in)
            audio = audio[:, AUDIO_OVERLAP:]
        last = start == starts[-1] and bool(pieces)
        pieces.append(audio if last else audio[:, :-AUDIO_OVERLAP])
    return torch.cat(pieces, dim=-1)
