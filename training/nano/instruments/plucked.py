"""Plucked and struck strings and bars: sums of damped modes, with the noise of the finger, pick or hammer."""

import numpy as np

from training.nano.instruments.oscillators import Curve, burst, formants, harmonics, modes, pitch_hz

_GUITAR_BODY = ((105.0, 0.3, 5.0), (215.0, 0.3, 5.0), (430.0, 0.4, 3.0), (2800.0, 0.8, 5.0))


def acoustic_guitar(pitch: int, strength: float, rng: np.random.Generator) -> Curve:
    """A steel string picked near the bridge: bright at first, its high partials die soon."""
    hz, n = pitch_hz(pitch), harmonics(45)
    partials = hz * n * np.sqrt(1 + 6e-5 * n**2)
    amplitude = np.abs(np.sin(np.pi * n * 0.13)) / n**0.75 * np.exp(-partials / (2500 + 4500 * strength))
    decay_s = 1.0 * (220 / hz) ** 0.4 / (1 + 0.10 * n + 0.006 * n**2)
    tone = modes(partials, decay_s, amplitude * formants(partials, _GUITAR_BODY), 2.4)
    tone += modes(partials * 1.0006, decay_s * 1.5, 0.4 * amplitude, 2.4)  # the string's other plane
    return tone + 0.9 * strength * burst(rng, 2.4, 1800, 6500, 0.005)


def electric_guitar(pitch: int, strength: float, rng: np.random.Generator) -> Curve:
    """A long string through a pickup and an amplifier that saturates."""
    hz, n = pitch_hz(pitch), harmonics(39)
    partials = hz * n * np.sqrt(1 + 4e-5 * n**2)
    amplitude = np.sin(np.pi * n * 0.22) * np.sin(np.pi * n * 0.14) / n**0.7 * np.exp(-partials / 3200)
    decay_s = 1.9 * (220 / hz) ** 0.4 / (1 + 0.05 * n + 0.002 * n**2)
    tone = modes(partials, decay_s, amplitude, 3.0)
    driven: Curve = np.tanh((1.0 + 1.4 * strength) * tone / np.max(np.abs(tone)))
    return driven + 0.3 * burst(rng, 3.0, 1500, 5000, 0.006)


def nylon_guitar(pitch: int, strength: float, rng: np.random.Generator) -> Curve:
    """A soft string plucked with the thumb, for chords behind a lead."""
    hz, n = pitch_hz(pitch), harmonics(23)
    amplitude = np.abs(np.sin(np.pi * n * 0.3)) / n**1.3 * np.exp(-hz * n / (1200 + 1200 * strength))
    decay_s = 0.8 * (220 / hz) ** 0.4 / (1 + 0.25 * n)
    tone = modes(hz * n, decay_s, amplitude * formants(hz * n, _GUITAR_BODY[:3]), 2.0)
    return tone + 0.12 * burst(rng, 2.0, 300, 1800, 0.008)


def clavinet(pitch: int, strength: float, rng: np.random.Generator) -> Curve:
    """A short, nasal struck string, for funk chords."""
    hz, n = pitch_hz(pitch), harmonics(31)
    amplitude = np.abs(np.sin(np.pi * n * 0.09)) / n**0.6 * np.exp(-hz * n / (1500 + 1800 * strength))
    return modes(hz * n, 0.5 / (1 + 0.15 * n), amplitude, 1.2) + 0.15 * burst(rng, 1.2, 800, 3000, 0.004)


def bass_guitar(pitch: int, strength: float, rng: np.random.Generator) -> Curve:
    """An electric bass played with fingers."""
    hz, n = pitch_hz(pitch), harmonics(23)
    amplitude = np.abs(np.sin(np.pi * n * 0.2)) / n**1.1 * np.exp(-hz * n / (500 + 500 * strength))
    return modes(hz * n, 1.6 / (1 + 0.25 * n), amplitude, 2.6) + 0.08 * burst(rng, 2.6, 200, 1500, 0.008)


def upright_bass(pitch: int, strength: float, rng: np.random.Generator) -> Curve:
    """A double bass, plucked: a thump and a note that does not last."""
    hz, n = pitch_hz(pitch), harmonics(15)
    amplitude = np.abs(np.sin(np.pi * n * 0.3)) / n**1.3 * np.exp(-hz * n / (400 + 300 * strength))
    return modes(hz * n, 0.75 / (1 + 0.35 * n), amplitude, 1.8) + 0.2 * burst(rng, 1.8, 80, 700, 0.012)


def piano(pitch: int, strength: float, rng: np.random.Generator) -> Curve:
    """Two stiff strings a hair apart, struck at an eighth of their length: a fast fall, then a long one."""
    hz, n = pitch_hz(pitch), harmonics(40)
    partials = hz * n * np.sqrt(1 + 3e-4 * 2 ** ((pitch - 60) / 12) * n**2)
    amplitude = (0.1 + np.abs(np.sin(np.pi * n / 8))) / n**0.9 * np.exp(-partials / (900 + 2100 * strength))
    decay_s = 0.75 * (262 / hz) ** 0.5 / (1 + 0.10 * n)
    tone = modes(partials, decay_s, amplitude, 3.4)
    tone += modes(partials * 1.0004, 4.0 * decay_s, 0.4 * amplitude, 3.4)
    return tone + 0.35 * burst(rng, 3.4, 150, 1200, 0.012)


def marimba(pitch: int, strength: float, rng: np.random.Generator) -> Curve:
    """A wooden bar: its modes stand at 1, 4 and 10 times the pitch and are short."""
    hz = pitch_hz(pitch)
    decay_s = np.array([0.30, 0.07, 0.025]) * (262 / hz) ** 0.5
    amplitude = np.array([1.0, 0.30 + 0.25 * strength, 0.15 + 0.3 * strength])
    tone = modes(hz * np.array([1.0, 3.98, 9.9]), decay_s, amplitude, 1.4)
    return tone + 0.3 * burst(rng, 1.4, 300, 1500, 0.006)
