"""The phases of steady tones that a vocoder can know, which hears magnitudes, and a clock.

Under a steady tone its input never changes, so that convolutions would repeat themselves with every mel frame: tones
would fall on multiples of 86 Hz, or be noise. So the autoencoder's decoder adds a pattern to its log-mel, which says
where each mel frame lies in its latent frame of 93 ms: what repeats itself with that is made of multiples of 10.8 Hz,
the lines of a grid whose phases are fixed. From 500 Hz on tones are moved to the nearest line, lower ones part of the
way, none by more than a fifth of a semitone; what lies between two lines then becomes both, and wavers, but has no
noise around it: that of renderings whose tones below 300 Hz were made so was 18.3 dB tonal to noise, where it is 18.6
as they are, and 12.0 if phases were fixed in the middle of each latent frame and jumped in between.

How far from a line's middle a phase can be foretold depends on how well a frequency is known, and mel bands are wider
the higher they are. Of phases that were all fixed in the middle of a latent frame, a backbone's guesses had a cosine of
0.98 to the true ones there, of 0.46 at its ends; and tones fade where they are guessed. So the grid is two and four
times as coarse for high ones, and each third of an octave has its middle in a place of its own: what wavers, then, does
not waver together.

Losses of spectra, which leave the phases open, led to noise: held-out renderings of 25 dB tonal to noise had -0.7 dB
after 1,800 steps. With phases that are named they had 7.9 dB after 600, once the backbone had learnt them alone. What
lies beside low tones matters as much: renderings of 18.6 dB came back with 11.1 while phases were asked for alone, and
with 17.4 some 290 steps after it was asked, too, that nothing be louder there.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acestep_engine.model.mel import MelConfig
from acestep_engine.params import MEL_FRAMES_PER_LATENT, MEL_HOP_SAMPLES, MODEL_SAMPLE_RATE_HZ, SAMPLES_PER_LATENT

MEL = MelConfig()
CLOCK_NEPERS = 4.0
MOVED_HZ = 500.0  # from here on tones are moved all the way
A4_HZ = 440.0
BAND_SEMITONES = 4  # bands of a third of an octave; between them are quarter tones
BANDS_PER_OCTAVE = 12 // BAND_SEMITONES
FIRST_COARSE_BAND = 4  # from A4: from 1077 Hz on the grid is coarser, and from 2154 Hz on again
STAGGER_FRAMES = 3  # from band to band, of the eight mel frames of a latent frame
DELAY_S_PER_HZ = 1e-6  # partials in phase would be one loud stroke
STEADY_BINS = 0.28  # what the frequency of a tone may differ between neighbouring frames, and bins
NEAR_BINS = 0.8  # of a tone from the middle of its bin
LOBE_BINS = 2  # of a Hann window, on either side
SOFTEST = 1e-4  # amplitude
RANGE = 1e-3  # of the loudest
COMPRESSION = 0.4  # of magnitudes: soft tones count as well


def clock(frames: int, device: torch.device | None = None) -> Tensor:
    """What the decoder adds to a log-mel, (128, frames), in nepers: stripes that say the frame's place among eight."""
    band, frame = torch.arange(MEL.n_mels, device=device)[:, None], torch.arange(frames, device=device)
    period = MEL_FRAMES_PER_LATENT
    stripes = (band % period == frame % period).float()
    return CLOCK_NEPERS * (period * stripes - 1) / (period - 1)


@dataclass(frozen=True, eq=False)
class Wanted:
    """Compressed spectra (B, bins, frames), complex, as a vocoder is to make tones, and to be no louder elsewhere.

    What is louder elsewhere counts `elsewhere` times as much as an error of tones.
    """

    values: Tensor
    tones: Tensor
    elsewhere: float

    def distance(self, found: Tensor) -> Tensor:
        """The mean error of compressed spectra, beside their mean size: about 1 of silence, where there are tones."""
        apart = torch.view_as_real(found - self.values).square().sum(-1)
        louder = ((torch.view_as_real(found).square().sum(-1) + 1e-10).sqrt() - self.values.abs()).clamp(min=0)
        error = (torch.where(self.tones, apart, louder.square()) + 1e-10).sqrt()
        weight = torch.where(self.tones, 1.0, self.elsewhere)
        return (weight * error).sum() / ((weight * self.values.abs()).sum() + 1e-3)


class Phases(nn.Module):
    """Spectra of some frequencies in frames of `window` samples, 512 apart. Frame m of audio begins at sample 512 m.

    `elsewhere` is how much what is beside tones matters, where phases are open.
    """

    window: Tensor
    slope: Tensor
    to_middle: Tensor
    hz: Tensor

    def __init__(self, window: int, lowest_hz: float, highest_hz: float, elsewhere: float = 1.0) -> None:
        super().__init__()
        self._elsewhere = elsewhere
        self._reach = LOBE_BINS + window // SAMPLES_PER_LATENT  # in bins, of what a tone becomes: a line and its lobe
        angle = 2 * math.pi * (torch.arange(window) + 0.5) / window
        self.bin_hz = MODEL_SAMPLE_RATE_HZ / window
        bins = torch.arange(int(lowest_hz / self.bin_hz), int(highest_hz / self.bin_hz))
        self._first = int(bins[0])
        self.middle = (window - 1) / 2  # of a frame, from its first sample
        self.register_buffer("window", 0.5 - 0.5 * angle.cos(), persistent=False)
        self.register_buffer("slope", math.pi / window * angle.sin(), persistent=False)  # of the window, per sample
        turn = 2 * math.pi * self.middle / window * bins
        self.register_buffer("to_middle", torch.polar(torch.ones(len(bins)), turn), persistent=False)
        self.register_buffer("hz", bins * self.bin_hz, persistent=False)

    @property
    def bins(self) -> int:
        return len(self.hz)

    def forward(self, audio: Tensor) -> Tensor:
        """Compressed spectra (B, bins, frames) of audio (B, N); phases are those at the middle of a frame."""
        return _compressed(self._spectra(audio, self.window))

    @torch.no_grad()
    def of_mel_frames(self, audio: Tensor) -> Wanted:
        """What to make where the log-mel of audio (B, N) has its frames; a latent frame begins with the first."""
        margin = (len(self.window) - MEL_HOP_SAMPLES) // 2
        return self.wanted(F.pad(audio[:, None], (margin, margin), mode="reflect")[:, 0], -margin)

    @torch.no_grad()
    def wanted(self, audio: Tensor, first_sample: int) -> Wanted:
        """What to make of audio (B, N) that begins so many samples behind the beginning of a latent frame."""
        spectra = self._spectra(audio, self.window)
        size = spectra.abs()
        # The frequency at which each bin turns (Auger and Flandrin 1995): that of the tone it belongs to.
        hz = self.hz[:, None] - (self._spectra(audio, self.slope) / (spectra + 1e-9)).imag * (
            MODEL_SAMPLE_RATE_HZ / (2 * math.pi)
        )
        samples = first_sample + self.middle + MEL_HOP_SAMPLES * torch.arange(size.shape[-1], device=audio.device)
        amplitude = torch.where(self._peaks(size, hz), size / self._response(hz, 0), 0.0)
        tones, values = torch.zeros_like(size, dtype=torch.bool), torch.zeros_like(spectra)
        for line in _lines(hz, samples):
            for away in range(-self._reach, self._reach + 1):
                there = torch.polar(amplitude * line.amplitude * self._response(line.hz, away), line.phase)
                values += _shifted(there, away)
                tones |= _shifted(amplitude, away) > 0
        return Wanted(_compressed(torch.where(tones, values, spectra)), tones, self._elsewhere)

    def _peaks(self, size: Tensor, hz: Tensor) -> Tensor:
        """Which bins (B, bins, frames) are the middles of loud and steady tones."""
        loud = (size > RANGE * size.amax((1, 2), keepdim=True)) & (size > SOFTEST)
        highest = (size >= _shifted(size, 1)) & (size >= _shifted(size, -1))
        near = (hz - self.hz[:, None]).abs() < NEAR_BINS * self.bin_hz
        alike_hz = STEADY_BINS * self.bin_hz
        over_bins, over_time = (hz.diff(dim=dim).abs() < alike_hz for dim in (1, 2))
        of_one_lobe = F.pad(over_bins, (0, 0, 0, 1)) & F.pad(over_bins, (0, 0, 1, 0))
        steady = F.pad(over_time, (0, 1)) | F.pad(over_time, (1, 0))
        return loud & highest & near & of_one_lobe & steady

    def _response(self, hz: Tensor, away: int) -> Tensor:
        """How strong a sine of amplitude 1 and of so many Hz (B, bins, frames) is so many bins above its bin."""
        return _hann_lobe((hz - self.hz[:, None]) / self.bin_hz - away)

    def _spectra(self, audio: Tensor, window: Tensor) -> Tensor:
        """About the amplitudes of sines."""
        size = len(window)
        values = torch.stft(audio, size, MEL_HOP_SAMPLES, window=window, center=False, return_complex=True)
        return values[:, self._first : self._first + self.bins] * self.to_middle[:, None] / (size / 2)


@dataclass(frozen=True, eq=False)
class _Line:
    """A line of the grid for each of many tones (B, bins, frames): Hz, share of the tone's amplitude, radians."""

    hz: Tensor
    amplitude: Tensor
    phase: Tensor


def _lines(hz: Tensor, samples: Tensor) -> tuple[_Line, _Line]:
    """What tones (B, bins, frames) become, at samples (frames,) counted from the beginning of a latent frame.

    About the same as short tones under Hann windows, one in each period of the grid and each reaching to the middles of
    its neighbours, whose phases are fixed in their own middles.
    """
    semitones = 12 * (hz.clamp(min=MEL.f_min) / A4_HZ).log2()
    band = ((semitones + 0.5) / BAND_SEMITONES).floor()
    coarser = ((band - FIRST_COARSE_BAND) / BANDS_PER_OCTAVE).floor().clamp(-1, 1) + 1
    length = SAMPLES_PER_LATENT * 0.5**coarser  # a grid's period
    late = (band * STAGGER_FRAMES).remainder(MEL_FRAMES_PER_LATENT) * MEL_HOP_SAMPLES
    turns = hz * length / MODEL_SAMPLE_RATE_HZ  # in a period; lines have whole ones
    turns = turns + (hz / MOVED_HZ).clamp(0, 1) * (turns.round() - turns)
    periods = (samples - late) / length - 0.5  # from a middle
    delay = math.pi * DELAY_S_PER_HZ * hz.square()
    below = turns.floor()

    def line(number: Tensor) -> _Line:
        phase = 2 * math.pi * number * periods.remainder(1.0) + delay
        return _Line(number * MODEL_SAMPLE_RATE_HZ / length, _hann_lobe(2 * (turns - number)), phase)

    return line(below), line(below + 1)


def _hann_lobe(bins: Tensor) -> Tensor:
    """The spectrum of a Hann window, 1 at its middle and 0 from two bins on, but for ripples."""
    return bins.sinc() + 0.5 * ((bins - 1).sinc() + (bins + 1).sinc())


def _shifted(values: Tensor, bins: int) -> Tensor:
    """What is at (B, bins, frames), so many bins higher; zeros come in."""
    padded = F.pad(values, (0, 0, max(bins, 0), max(-bins, 0)))
    return padded[:, : values.shape[1]] if bins >= 0 else padded[:, -values.shape[1] :]


def _compressed(spectra: Tensor) -> Tensor:
    return spectra * (torch.view_as_real(spectra).square().sum(-1) + 1e-8).pow((COMPRESSION - 1) / 2)
