"""Latents to audio, a window of bounded work at a time: with the figures of the whole, or in the published windows."""

from collections import deque
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from acestep_engine.decode_overlapped import overlapped_units
from acestep_engine.decode_units import (
    AUDIO_SHARE,
    MelMaker,
    SongBuffers,
    Unit,
    first_and_equal_windows,
    interleaved,
)
from acestep_engine.errors import LatentShapeError, NumericalError
from acestep_engine.model.autoencoder import LATENT_CHANNELS, LATENT_HEIGHT, MusicAutoencoder
from acestep_engine.params import MEL_FRAMES_PER_LATENT, MODEL_SAMPLE_RATE_HZ, OUTPUT_SAMPLE_RATE_HZ, SAMPLES_PER_LATENT

OVERLAPPED_OVER_S = 48.0  # the published pipeline decodes shorter songs in one piece even when asked to overlap

# In latent frames. The first window of audio is of 1.5 s, so that it can be heard soon, the others are of up to 10 s. A
# song of up to 3 s is one window.
FIRST_WINDOW = 16
SHORT_SONG = 32
AUDIO_WINDOW = 108


class Decoding:
    """One song on its way from latents (8, 16, T) to audio, a window at a time.

    A window bounds the work, and with it the memory, whatever the song's length; between windows the device is free for
    others. Not overlapped, the audio is that of the whole song decoded in one piece, to rounding: what attends to the
    whole song runs over it step by step, and all else convolves, in windows with as much context as it can see. Audio
    comes in order, the first of it early.

    Raises LatentShapeError for latents of another shape or T = 0, NumericalError if they are not all finite.
    """

    def __init__(
        self,
        autoencoder: MusicAutoencoder,
        latents: Tensor,
        *,
        overlapped: bool = False,
        sample_rate_hz: int = OUTPUT_SAMPLE_RATE_HZ,
    ) -> None:
        check_latents(latents)
        plan = overlapped_units if overlapped else whole_units
        song, units = plan(autoencoder, latents, sample_rate_hz)
        self._autoencoder = autoencoder
        self._units = deque(units)
        self.windows = len(self._units)
        self.samples = song.samples  # of the whole song

    @property
    def windows_done(self) -> int:
        return self.windows - len(self._units)

    @property
    def next_frames(self) -> int:
        """What the next window costs, as about so many latent frames decoded from end to end; 0 after the last."""
        return self._units[0].frames if self._units else 0

    @property
    def frames_left(self) -> int:
        """The same, summed over all windows that are left."""
        return sum(unit.frames for unit in self._units)

    @torch.inference_mode()
    def advance(self) -> Tensor | None:
        """Run the next window, of which there must be one. On a GPU it is queued, and nothing waits for it.

        The answer is the next audio (2, n), if the window completes any, on the autoencoder's device, float32, for
        `check_finite` to judge. All answers joined are the song of `samples`. If it raises, for want of memory say,
        nothing has changed, and it may be tried again.
        """
        assert self._units, "the song is decoded"
        audio = self._autoencoder.convolving(self._units[0].run, self._autoencoder.device)
        self._units.popleft()
        return audio


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
    decoding = Decoding(autoencoder, latents, overlapped=overlapped, sample_rate_hz=sample_rate_hz)
    parts = [decoding.advance() for _ in range(decoding.windows)]
    audio = torch.cat([part for part in parts if part is not None], dim=-1)
    check_finite(audio)
    return audio


def check_finite(audio: Tensor) -> None:
    """Raise NumericalError unless decoded audio is finite."""
    if not audio.isfinite().all():
        raise NumericalError("the decoder answered NaN or infinity")


def check_latents(latents: Tensor) -> None:
    """Raise LatentShapeError unless latents are (8, 16, T >= 1), NumericalError unless they are finite."""
    shape = tuple(latents.shape)
    if len(shape) != 3 or shape[:2] != (LATENT_CHANNELS, LATENT_HEIGHT) or shape[2] == 0:
        raise LatentShapeError(f"latents have shape {shape}, expected ({LATENT_CHANNELS}, {LATENT_HEIGHT}, T >= 1)")
    if not latents.isfinite().all():
        raise NumericalError("the latents hold NaN or infinity")


def whole_units(
    autoencoder: MusicAutoencoder, latents: Tensor, sample_rate_hz: int
) -> tuple[SongBuffers, Iterator[Unit]]:
    """The units that decode latents (8, 16, T) with the figures of one piece, and the song that they fill."""
    frames = latents.shape[-1]
    samples = autoencoder.resample.length(frames * SAMPLES_PER_LATENT, MODEL_SAMPLE_RATE_HZ, sample_rate_hz)
    song = SongBuffers(autoencoder, frames, samples, sample_rate_hz)
    return song, _units(autoencoder, latents, song)


def _units(autoencoder: MusicAutoencoder, latents: Tensor, song: SongBuffers) -> Iterator[Unit]:
    mel = MelMaker(autoencoder, latents, 0, song.frames, song)
    audio = list(_audio_units(autoencoder, song))
    first_heard, _ = audio[0]
    return interleaved(mel.units(first_heard), audio)


def _audio_units(autoencoder: MusicAutoencoder, song: SongBuffers) -> Iterator[tuple[int, Unit]]:
    """Each with the latent frame up to which it hears."""
    done = 0
    first_stop = song.frames if song.frames <= SHORT_SONG else FIRST_WINDOW
    for start, stop in first_and_equal_windows(0, first_stop, song.frames, AUDIO_WINDOW):
        run = partial(_vocode, autoencoder, song, start, stop, done - start)
        yield autoencoder.heard_up_to(start, stop, song.frames), Unit.of_share(run, AUDIO_SHARE, stop - start)
        done = stop


def _vocode(autoencoder: MusicAutoencoder, song: SongBuffers, start: int, stop: int, known: int) -> Tensor:
    """The audio of latent frames [start, stop), but of the first `known`, which were in the window before."""
    audio = autoencoder.mel_to_audio(song.mel, start * MEL_FRAMES_PER_LATENT, stop * MEL_FRAMES_PER_LATENT)
    return song.resample(audio[:, known * SAMPLES_PER_LATENT :], last=stop == song.frames)
