"""Decoding as the published pipeline decodes long songs: windows that overlap, and are faded into each other.

It differs slightly from the whole song's decoding, because the autoencoder attends to one window at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from acestep_engine.decode_units import AUDIO_SHARE, MelMaker, SongBuffers, Unit, interleaved
from acestep_engine.model.autoencoder import MusicAutoencoder
from acestep_engine.params import MEL_FRAMES_PER_LATENT, MEL_HOP_SAMPLES, MODEL_SAMPLE_RATE_HZ, SAMPLES_PER_LATENT

LATENT_WINDOW = 512
LATENT_HOP = 256
LATENT_MARGIN = 128  # at each inner edge of a window these latent frames are context, and have no mel of their own

MEL_WINDOW = 512
AUDIO_OVERLAP = 1024
MEL_HOP = MEL_WINDOW - 2 * AUDIO_OVERLAP // MEL_HOP_SAMPLES
CROSSFADE = 128


@dataclass(frozen=True)
class LatentWindow:
    """Decode the latent frames [start, stop), keep the result of [keep_start, keep_stop)."""

    start: int
    stop: int
    keep_start: int
    keep_stop: int


def overlapped_units(
    autoencoder: MusicAutoencoder, latents: Tensor, sample_rate_hz: int
) -> tuple[SongBuffers, Iterator[Unit]]:
    """The units that decode latents (8, 16, T), and the song that they fill: its length is rounded down."""
    frames = latents.shape[-1]
    samples = frames * SAMPLES_PER_LATENT * sample_rate_hz // MODEL_SAMPLE_RATE_HZ
    song = SongBuffers(autoencoder, frames, samples, sample_rate_hz)
    return song, _units(autoencoder, latents, song)


def _units(autoencoder: MusicAutoencoder, latents: Tensor, song: SongBuffers) -> Iterator[Unit]:
    return interleaved(_mel_units(autoencoder, latents, song), _audio_units(autoencoder, song))


def _mel_units(autoencoder: MusicAutoencoder, latents: Tensor, song: SongBuffers) -> Iterator[tuple[Unit, int]]:
    for window in latent_windows(song.frames):
        part = latents[..., window.start : window.stop]
        kept = window.keep_start - window.start, window.keep_stop - window.start
        first_stop = MEL_WINDOW // MEL_FRAMES_PER_LATENT if window.start == 0 else kept[1]
        yield from MelMaker(autoencoder, part, *kept, song, window.start).units(first_stop)


def _audio_units(autoencoder: MusicAutoencoder, song: SongBuffers) -> Iterator[tuple[int, Unit]]:
    """Each with the latent frame up to which it hears."""
    vocoding = OverlappedVocoding(autoencoder, song)
    starts = range(0, song.frames * MEL_FRAMES_PER_LATENT, MEL_HOP)
    for start in starts:
        run = partial(vocoding.run, start, last=start == starts[-1])
        heard = min(ceil((start + MEL_WINDOW) / MEL_FRAMES_PER_LATENT), song.frames)
        yield heard, Unit.of_share(run, AUDIO_SHARE, MEL_WINDOW // MEL_FRAMES_PER_LATENT)


def latent_windows(frames: int) -> Iterator[LatentWindow]:
    """Windows that overlap by half and together keep every one of `frames` latent frames once.

    Up to 512 frames are one window. The last window may be shorter than the others.
    """
    starts = range(0, max(1, frames - LATENT_HOP), LATENT_HOP)
    for start in starts:
        first, last = start == 0, start == starts[-1]
        stop = min(start + LATENT_WINDOW, frames)
        keep_start, keep_stop = start if first else start + LATENT_MARGIN, stop if last else stop - LATENT_MARGIN
        yield LatentWindow(start, stop, keep_start, keep_stop)


class OverlappedVocoding:
    """Mel to audio in windows of 512 frames, faded into each other over 128 samples.

    Neighbours share 2048 samples, of which each drops its outer 1024: no edge of a window is heard. Past the end of the
    song the last window is filled with zeros, and the audio reaches to the end of it.
    """

    def __init__(self, autoencoder: MusicAutoencoder, song: SongBuffers) -> None:
        self._autoencoder = autoencoder
        self._song = song
        self._tail: Tensor | None = None  # (2, 128) of the last window, to be faded into the next

    def run(self, start: int, *, last: bool) -> Tensor:
        """The audio (2, n) that the window of the mel from frame `start` on completes."""
        mel = self._song.mel[..., start : start + MEL_WINDOW]
        audio = self._autoencoder.mel_to_audio(F.pad(mel, (0, MEL_WINDOW - mel.shape[-1])))
        if self._tail is None:
            audio = audio[:, :-AUDIO_OVERLAP]
        else:
            fade_in = torch.linspace(0, 1, CROSSFADE, device=audio.device)
            audio = audio[:, AUDIO_OVERLAP - CROSSFADE : None if last else -AUDIO_OVERLAP]
            audio[:, :CROSSFADE] = self._tail * fade_in.flip(0) + audio[:, :CROSSFADE] * fade_in
        tail = audio[:, -CROSSFADE:].clone()
        resampled = self._song.resample(audio if last else audio[:, :-CROSSFADE], last=last)
        self._tail = tail
        return resampled
