"""The phases of steady tones that a vocoder can know, which hears magnitudes, and a clock.

Under a steady tone its input never changes, so that convolutions would repeat themselves with every mel frame: tones
would fall on multiples of 86 Hz, or be noise. So the autoencoder's decoder adds a pattern to its log-mel, which says
where each mel frame lies in its latent frame of 93 ms, and for as long tones can go on: their phases are fixed once in
a latent frame, and a tone jumps in between, unless its frequency is a multiple of 10.8 Hz. From 500 Hz on tones are
moved to the nearest frequency that does not jump, lower ones part of the way, none by more than a fifth of a semitone.

How far from there a phase can be foretold depends on how well a frequency is known, and mel bands are wider the higher
they are. Of phases that were all fixed in the middle of a latent frame, a backbone's guesses had a cosine of 0.98 to
the true ones there, of 0.46 at its ends; and tones fade where they are guessed. So high ones are fixed twice or four
times as often, and each third of an octave in a place of its own: what wavers, then, does not waver together.

Losses of spectra, which leave the phases open, led to noise: held-out renderings of 25 dB tonal to noise had -0.7 dB
after 1,800 steps. With phases that are named they had 7.9 dB after 600, once the backbone had learnt them alone.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acestep_engine.model.mel import MelConfig
from acestep_engine.params import MEL_FRAMES_PER_LATENT, MEL_HOP_SAMPLES, MODEL_SAMPLE_RATE_HZ

MEL = MelConfig()
WINDOW = MEL.win_length
CLOCK_NEPERS = 4.0
HIGHEST_HZ = 4000.0  # above it a mel band is too wide to tell a tone's frequency
MOVED_HZ = 500.0  # from here on tones are moved all the way
BAND_SEMITONES = 4  # bands of a third of an octave; between them are quarter tones
FIRST_HALVED_BAND, BANDS_OF_OCTAVE = (
    4,
    3,
)  # bands count from A4; from 1077 and from 2154 Hz on phases are fixed more often
STAGGER_FRAMES = 3  # from band to band, of the eight mel frames of a latent frame
DELAY_S_PER_HZ = 1e-6  # partials in phase would be one loud stroke
STEADY_HZ = 6.0  # what the frequency of a tone may differ between neighbouring frames, and bins
SOFTEST = 1e-4  # amplitude
LEAST_RESPONSE = 0.05  # 1.7 bins from a tone
RANGE = 1e-3  # of the loudest
A4_HZ = 440.0
COMPRESSION = 0.4  # of magnitudes: soft tones count as well
MIDDLE = (WINDOW - 1) / 2  # of a frame, from its first sample
LATENT_SAMPLES = MEL_FRAMES_PER_LATENT * MEL_HOP_SAMPLES


def clock(frames: int, device: torch.device | None = None) -> Tensor:
    """What the decoder adds to a log-mel, (128, frames), in nepers: stripes that say the frame's place among eight."""
    band, frame = torch.arange(MEL.n_mels, device=device)[:, None], torch.arange(frames, device=device)
    period = MEL_FRAMES_PER_LATENT
    stripes = (band % period == frame % period).float()
    return CLOCK_NEPERS * (period * stripes - 1) / (period - 1)


@dataclass(frozen=True, eq=False)
class Steady:
    """Compressed spectra (B, bins, frames), complex, as a vocoder is to make them, and where there are steady tones."""

    values: Tensor
    tones: Tensor

    def distance(self, found: Tensor) -> Tensor:
        """The mean error of compressed spectra, beside the tones' mean size: silence has 1."""
        error = (torch.view_as_real(found - self.values).square().sum(-1) + 1e-7).sqrt()
        return (error * self.tones).sum() / ((self.values.abs() * self.tones).sum() + 1e-3)


class Phases(nn.Module):
    """Spectra up to 4 kHz in frames of 2048 samples, 512 apart. Frame m of audio begins at its sample 512 m."""

    window: Tensor
    slope: Tensor
    to_middle: Tensor
    hz: Tensor

    def __init__(self) -> None:
        super().__init__()
        angle = 2 * math.pi * (torch.arange(WINDOW) + 0.5) / WINDOW
        bins = torch.arange(int(HIGHEST_HZ * WINDOW / MODEL_SAMPLE_RATE_HZ))
        self.register_buffer("window", 0.5 - 0.5 * angle.cos(), persistent=False)
        self.register_buffer("slope", math.pi / WINDOW * angle.sin(), persistent=False)  # of the window, per sample
        turn = 2 * math.pi * MIDDLE / WINDOW * bins
        self.register_buffer("to_middle", torch.polar(torch.ones(len(bins)), turn), persistent=False)
        self.register_buffer("hz", bins * MODEL_SAMPLE_RATE_HZ / WINDOW, persistent=False)

    @property
    def bins(self) -> int:
        return len(self.hz)

    def forward(self, audio: Tensor) -> Tensor:
        """Compressed spectra (B, bins, frames) of audio (B, N); phases are those at the middle of a frame."""
        values = self._spectra(audio, self.window)
        return values * (torch.view_as_real(values).square().sum(-1) + 1e-8).pow((COMPRESSION - 1) / 2)

    @torch.no_grad()
    def of_mel_frames(self, audio: Tensor) -> Steady:
        """What to make where the log-mel of audio (B, N) has its frames; a latent frame begins with the first."""
        margin = (WINDOW - MEL_HOP_SAMPLES) // 2
        return self.wanted(F.pad(audio[:, None], (margin, margin), mode="reflect")[:, 0], -margin)

    @torch.no_grad()
    def wanted(self, audio: Tensor, first_sample: int) -> Steady:
        """What to make of audio (B, N) that begins so many samples behind the beginning of a latent frame."""
        spectra = self._spectra(audio, self.window)
        size = spectra.abs()
        # The frequency at which each bin turns (Auger and Flandrin 1995): that of the tone it belongs to.
        hz = self.hz[:, None] - (self._spectra(audio, self.slope) / (spectra + 1e-9)).imag * (
            MODEL_SAMPLE_RATE_HZ / (2 * math.pi)
        )
        loud = (size > RANGE * size.amax((1, 2), keepdim=True)) & (size > SOFTEST)
        near = (hz - self.hz[:, None]).abs() < 1.6 * MODEL_SAMPLE_RATE_HZ / WINDOW
        middles = first_sample + MIDDLE + MEL_HOP_SAMPLES * torch.arange(size.shape[-1], device=audio.device)
        moved_hz, phase = _moved(hz, middles)
        tones = loud & near & _like_a_neighbour(hz, 1) & _like_a_neighbour(hz, 2)
        size = size * self._response(moved_hz) / self._response(hz).clamp(min=LEAST_RESPONSE)
        return Steady(torch.polar(size.pow(COMPRESSION), phase), tones)

    def _response(self, hz: Tensor) -> Tensor:
        """How strong a sine of amplitude 1 and of so many Hz (B, bins, frames) is in its bin: a Hann window's lobe."""
        apart = (hz - self.hz[:, None]) * WINDOW / MODEL_SAMPLE_RATE_HZ
        return (apart.sinc() + 0.5 * ((apart - 1).sinc() + (apart + 1).sinc())).abs()

    def _spectra(self, audio: Tensor, window: Tensor) -> Tensor:
        """About the amplitudes of sines."""
        values = torch.stft(audio, WINDOW, MEL_HOP_SAMPLES, window=window, center=False, return_complex=True)
        return values[:, : self.bins] * self.to_middle[:, None] / (WINDOW / 2)


def _moved(hz: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Where tones (B, bins, frames) are moved to, in Hz, and their phases, at samples (frames,) counted from the
    beginning of a latent frame."""
    semitones = 12 * (hz.clamp(min=MEL.f_min) / A4_HZ).log2()
    band = ((semitones + 0.5) / BAND_SEMITONES).floor()
    halvings = ((band - FIRST_HALVED_BAND) / BANDS_OF_OCTAVE).floor().clamp(-1, 1) + 1
    length = LATENT_SAMPLES * 0.5**halvings  # of a stretch that a phase is fixed for
    late = (band * STAGGER_FRAMES).remainder(MEL_FRAMES_PER_LATENT) * MEL_HOP_SAMPLES
    seconds = ((samples - late).remainder(length) - length / 2) / MODEL_SAMPLE_RATE_HZ  # from its middle
    grid_hz = MODEL_SAMPLE_RATE_HZ / length
    moved = hz + (hz / MOVED_HZ).clamp(0, 1) * ((hz / grid_hz).round() * grid_hz - hz)
    return moved, 2 * math.pi * moved * seconds + math.pi * DELAY_S_PER_HZ * hz.square()


def _like_a_neighbour(hz: Tensor, dim: int) -> Tensor:
    """Where a frequency is about that of the one before or after it along a dimension."""
    alike = hz.diff(dim=dim).abs() < STEADY_HZ
    before = F.pad(alike, (0, 0, 0, 1) if dim == 1 else (0, 1))
    after = F.pad(alike, (0, 0, 1, 0) if dim == 1 else (1, 0))
    return before | after
