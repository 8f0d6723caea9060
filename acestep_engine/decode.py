"""Latents to audio, a window of bounded work at a time: with the figures of the whole, or in the published windows."""

from collections import deque
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from acestep_engine.decode_overlapped import overlapped_units
from acestep_engine.decode_units import AUDIO_SHARE, MelMaker, SongBuffers, Unit
from acestep_engine.errors import LatentShapeError, NumericalError
from acestep_engine.model.autoencoder import LATENT_CHANNELS, LATENT_HEIGHT, SAMPLES_PER_LATENT, MusicAutoencoder
from acestep_engine.model.windows import equal_windows
from acestep_engine.params import MEL_FRAMES_PER_LATENT, MODEL_SAMPLE_RATE_HZ, OUTPUT_SAMPLE_RATE_HZ

OVERLAPPED_OVER_S = 48.0  # the published pipeline decodes shorter songs in one piece even when asked to overlap

# In latent frames: a song of up to 20 s is vocoded in one window, a longer one in windows of up to 10 s.
SHORT_SONG = 216
AUDIO_WINDOW = 108


class Decoding:
    """One song on its way from latents (8, 16, T) to audio, a window at a time.

    A window bounds the work, and with it the memory, whatever the song's length; between windows the device is free for
    others. Not overlapped, the audio is that of the whole song decoded in one piece, to rounding: what attends to the
    whole song runs over it step by step, and all else convolves, in windows with as much context as it can see.

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
        self._song, units = plan(autoencoder, latents, sample_rate_hz)
        self._units = deque(units)
        self.windows = len(self._units)

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
    def advance(self) -> None:
        """Run the next window, of which there must be one. On a GPU it is queued, and nothing waits for it.

        If it raises, for want of memory say, nothing has changed, and it may be tried again.
        """
        assert self._units, "the song is decoded"
        self._units[0].run()
        self._units.popleft()

    @property
    def audio(self) -> Tensor:
        """The decoded song (2, N) on the autoencoder's device, float32, once all windows are done.

        Raises NumericalError if it is not all finite.
        """
        assert not self._units, f"{self.windows_done} of {self.windows} windows are done"
        if not self._song.finite:
            raise NumericalError("the decoder answered NaN or infinity")
        return self._song.audio


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
    while decoding.windows_done < decoding.windows:
        decoding.advance()
    return decoding.audio


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
    yield from MelMaker(autoencoder, latents, 0, song.frames, song).units()
    longest = SHORT_SONG if song.frames <= SHORT_SONG else AUDIO_WINDOW
    done = 0
    for start, stop in equal_windows(0, song.frames, longest):
        run = partial(_vocode, autoencoder, song, start, stop, done - start)
        yield Unit.of_share(run, AUDIO_SHARE, stop - start)
        done = stop


def _vocode(autoencoder: MusicAutoencoder, song: SongBuffers, start: int, stop: int, known: int) -> None:
    """Append the audio of latent frames [start, stop), the first `known` of which were in the window before."""
    audio = autoencoder.mel_to_audio(song.mel, start * MEL_FRAMES_PER_LATENT, stop * MEL_FRAMES_PER_LATENT)
    song.append(audio[:, known * SAMPLES_PER_LATENT :], last=stop == song.frames)
