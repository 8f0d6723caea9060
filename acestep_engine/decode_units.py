"""What decoding is made of: units of bounded work, and the buffers that they fill on the way from latents to audio."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from acestep_engine.model.autoencoder import MusicAutoencoder
from acestep_engine.model.resampling import ResampledStream
from acestep_engine.model.windows import equal_windows
from acestep_engine.params import MEL_FRAMES_PER_LATENT, MODEL_SAMPLE_RATE_HZ

# Parts of the work for a latent frame, by the multiplications of v1.
ATTEND_SHARE, MEL_SHARE, AUDIO_SHARE = 0.06, 0.24, 0.70

# In latent frames; a window is long beside its context, so that little is computed twice.
MEL_WINDOW = 216
ATTENDED_AT_ONCE = 2048  # in one step or several: those of a short song are one unit


@dataclass(frozen=True)
class Unit:
    """Work to be done at one go, which costs about as much as `frames` latent frames from end to end.

    `run` answers the audio (2, n) that it completes, if it makes any: the song's next, float32. If it raises, for want
    of memory say, it may be called again: it has changed nothing.
    """

    run: Callable[[], Tensor | None]
    frames: int

    @classmethod
    def of_share(cls, run: Callable[[], Tensor | None], share: float, frames: int) -> "Unit":
        """That does a share of the work for so many latent frames."""
        return cls(run, max(1, round(share * frames)))


class SongBuffers:
    """A song of `frames` latent frames on its way to `samples` of audio. Memory is taken when it is first used."""

    def __init__(self, autoencoder: MusicAutoencoder, frames: int, samples: int, sample_rate_hz: int) -> None:
        self.frames = frames
        self.samples = samples
        self._device, self._dtype = autoencoder.device, autoencoder.dtype
        self._stream = ResampledStream(autoencoder.resample, MODEL_SAMPLE_RATE_HZ, sample_rate_hz)
        self._answered = 0

    @cached_property
    def mel(self) -> Tensor:
        """The log-mel (2, 128, 8 * frames), of the vocoder's dtype."""
        return torch.empty(2, 128, self.frames * MEL_FRAMES_PER_LATENT, device=self._device, dtype=self._dtype)

    def resample(self, audio: Tensor, *, last: bool) -> Tensor:
        """The next samples (2, N) at 44.1 kHz, the `last` or not, to those at the final rate that they complete.

        What exceeds `samples` in all is cut off.
        """
        resampled = self._stream.push(audio, last=last)[:, : self.samples - self._answered]
        self._answered += resampled.shape[-1]
        return resampled


def interleaved(mel: Iterable[tuple[Unit, int]], audio: Iterable[tuple[int, Unit]]) -> Iterator[Unit]:
    """The units of the mel, each with how far it reaches, among those of the audio, each with how far it hears.

    Audio comes as early as the mel allows.
    """
    mel, reached = iter(mel), 0
    for heard, unit in audio:
        while reached < heard:
            mel_unit, reached = next(mel)
            yield mel_unit
        yield unit


def first_and_equal_windows(start: int, first_stop: int, stop: int, longest: int) -> list[tuple[int, int]]:
    """[start, stop) in windows: the first ends at `first_stop` or before, the others are of one length."""
    first = equal_windows(start, min(first_stop, stop), longest)
    return first if first_stop >= stop else [*first, *equal_windows(first_stop, stop, longest)]


class MelMaker:
    """Latents (8, 16, T), decoded together, to the log-mel of those in [keep_start, keep_stop), put into the song's.

    `offset` is where latent frame 0 of these is in the song.
    """

    def __init__(
        self,
        autoencoder: MusicAutoencoder,
        latents: Tensor,
        keep_start: int,
        keep_stop: int,
        song: SongBuffers,
        offset: int = 0,
    ) -> None:
        self._autoencoder = autoencoder
        self._image = autoencoder.latents_to_image(latents)
        self._keep_start, self._keep_stop = keep_start, keep_stop
        self._song = song
        self._offset = offset

    def units(self, first_stop: int) -> Iterator[tuple[Unit, int]]:
        """Attention over all of the latents, then the windows of the mel, the first of them up to `first_stop`.

        Each with the latent frame of the song up to which there is mel after it.
        """
        frames = self._image.shape[-1]
        steps = self._autoencoder.decoder.attending_steps
        at_once = max(1, ATTENDED_AT_ONCE // frames)
        for first in range(0, steps, at_once):
            part = range(first, min(first + at_once, steps))
            unit = Unit.of_share(partial(self._attend, part), ATTEND_SHARE * len(part) / steps, frames)
            yield unit, self._offset + self._keep_start
        for start, stop in first_and_equal_windows(self._keep_start, first_stop, self._keep_stop, MEL_WINDOW):
            yield Unit.of_share(partial(self._convolve, start, stop), MEL_SHARE, stop - start), self._offset + stop

    def _attend(self, steps: range) -> None:
        image = self._image
        for step in steps:
            image = self._autoencoder.decoder.attend(step, image)
        self._image = image

    def _convolve(self, start: int, stop: int) -> None:
        mel = self._autoencoder.attended_to_mel(self._image, start, stop)
        first, last = self._offset + start, self._offset + stop
        self._song.mel[..., first * MEL_FRAMES_PER_LATENT : last * MEL_FRAMES_PER_LATENT] = mel
