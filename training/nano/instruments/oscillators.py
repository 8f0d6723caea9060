"""Building blocks of tones: damped modes, wavetables with a moving pitch and brightness, shaped noise."""

import numpy as np
from numpy.typing import NDArray

from acestep_engine.params import MODEL_SAMPLE_RATE_HZ as SAMPLE_RATE_HZ

Wave = NDArray[np.float32]  # (N,) mono at 44.1 kHz
Curve = NDArray[np.float64]

_TABLE_SIZE = 2048
_HIGHEST_HZ = 15_000.0  # partials above are left out: no aliasing, and nobody would miss them


def pitch_hz(pitch: float) -> float:
    """The frequency of a MIDI pitch, A4 (69) at 440 Hz."""
    return float(440.0 * 2.0 ** ((pitch - 69.0) / 12.0))


def seconds(duration_s: float) -> Curve:
    """The times of the samples of `duration_s`, (N,) in seconds."""
    return np.arange(round(duration_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ


def harmonics(count: int) -> Curve:
    """1, 2, ... `count`, (P,)."""
    return np.arange(1, count + 1, dtype=np.float64)


def modes(hz: Curve, decay_s: Curve, amplitude: Curve, duration_s: float) -> Curve:
    """The sum of damped sines (N,): each of (P,) has a frequency, a time to fall to 1/e, and an amplitude.

    A sample is at block k, place j: exp(z (Bk + j)) = exp(z B k) exp(z j), so that the sum over P is a matrix product.
    """
    audible = hz < _HIGHEST_HZ
    length, block = round(duration_s * SAMPLE_RATE_HZ), 512
    z = (-1.0 / decay_s[audible] + 2j * np.pi * hz[audible]) / SAMPLE_RATE_HZ  # (P,)
    coarse = np.exp(np.outer(np.arange(-(-length // block)) * block, z))  # (K, P)
    fine = amplitude[audible, None] * np.exp(np.outer(z, np.arange(block)))  # (P, B)
    tone: Curve = (coarse.imag @ fine.real + coarse.real @ fine.imag).reshape(-1)[:length]  # sines: they start at zero
    return tone


def wavetable(amplitudes: Curve, fundamental_hz: float, rng: np.random.Generator | None = None) -> Curve:
    """One period (2048,) of harmonics 1, 2, ... with these amplitudes, without those too high to be played.

    Random phases (with `rng`) spread the energy over the period; without, all harmonics are sines.
    """
    count = min(len(amplitudes), int(_HIGHEST_HZ / fundamental_hz))
    spectrum = np.zeros(_TABLE_SIZE // 2 + 1, dtype=np.complex128)
    phases = np.zeros(count) if rng is None else rng.uniform(0, 2 * np.pi, count)
    spectrum[1 : count + 1] = amplitudes[:count] * np.exp(1j * phases) * -0.5j * _TABLE_SIZE
    return np.fft.irfft(spectrum, _TABLE_SIZE)


def play(table: Curve, hz: Curve, start: float = 0.0) -> Curve:
    """A wavetable read at the frequencies `hz` (N,), from the place `start` (0..1) of its period."""
    place = ((np.cumsum(hz) / SAMPLE_RATE_HZ + start) % 1.0) * _TABLE_SIZE
    index = place.astype(np.int64)
    after = place - index
    below, above = table[index % _TABLE_SIZE], table[(index + 1) % _TABLE_SIZE]
    read: Curve = below + after * (above - below)
    return read


def vibrato(t: Curve, rate_hz: float, depth_cents: float, delay_s: float, phase: float = 0.0) -> Curve:
    """Factors of the frequency (N,): a sine that comes in after `delay_s`."""
    depth = depth_cents * np.clip((t - delay_s) / 0.2, 0.0, 1.0)
    factors: Curve = 2.0 ** (depth * np.sin(2 * np.pi * rate_hz * t + phase) / 1200.0)
    return factors


def rise(t: Curve, attack_s: float) -> Curve:
    """A level (N,) that goes from 0 to 1 in `attack_s` on half a cosine, and stays."""
    level: Curve = 0.5 - 0.5 * np.cos(np.pi * np.clip(t / attack_s, 0.0, 1.0))
    return level


def shaped_noise(rng: np.random.Generator, duration_s: float, low_hz: float, high_hz: float) -> Curve:
    """White noise (N,) of standard deviation 1, between two frequencies with slopes of 12 dB an octave."""
    length = round(duration_s * SAMPLE_RATE_HZ)
    spectrum = np.fft.rfft(rng.standard_normal(length))
    hz = np.maximum(np.fft.rfftfreq(length, 1 / SAMPLE_RATE_HZ), 1.0)
    spectrum /= (1 + (low_hz / hz) ** 2) * (1 + (hz / high_hz) ** 2)
    noise = np.fft.irfft(spectrum, length)
    return noise / max(float(np.std(noise)), 1e-12)


def burst(rng: np.random.Generator, duration_s: float, low_hz: float, high_hz: float, decay_s: float) -> Curve:
    """Noise (N,) of standard deviation 1 at first that falls to 1/e in `decay_s`: a pick, a hammer, a stick."""
    heard_s = min(duration_s, 12 * decay_s)
    t = seconds(heard_s)
    noise = np.zeros(round(duration_s * SAMPLE_RATE_HZ))
    noise[: len(t)] = shaped_noise(rng, heard_s, low_hz, high_hz) * np.exp(-t / decay_s) * rise(t, 0.001)
    return noise


def formants(hz: Curve, peaks: tuple[tuple[float, float, float], ...]) -> Curve:
    """The gain (P,) at the frequencies `hz` of a body with resonances (centre in Hz, width in octaves, gain in dB)."""
    gain_db = np.zeros_like(hz)
    for centre_hz, width_octaves, peak_db in peaks:
        gain_db += peak_db * np.exp(-((np.log2(hz / centre_hz) / width_octaves) ** 2))
    gains: Curve = 10.0 ** (gain_db / 20.0)
    return gains
