"""Synthesizers: a lead and a pad with moving filters, and frequency modulation for basses and electric pianos."""

import numpy as np

from training.nano.instruments.additive import LONGEST_S
from training.nano.instruments.oscillators import Curve, harmonics, pitch_hz, play, rise, seconds, wavetable


def synth(pitch: int, strength: float, rng: np.random.Generator) -> Curve:
    """Two square waves beating against each other; a filter opens at once and closes in a quarter of a second."""
    t, hz, n = seconds(LONGEST_S), pitch_hz(pitch), harmonics(79)
    square = np.where(n % 2 == 1, 1.0, 0.12) / n
    closed = wavetable(square / (1 + (hz * n / (2.2 * hz + 300)) ** 4), hz)
    opened = wavetable(square / (1 + (hz * n / 9000) ** 4), hz)
    opening = 0.30 + (0.3 + 0.4 * strength) * np.exp(-t / 0.16)
    tone = np.zeros_like(t)
    for cents, start in ((-6.0, 0.0), (6.0, 0.37)):
        pitched = np.full_like(t, hz * 2 ** (cents / 1200))
        tone += (1 - opening) * play(closed, pitched, start) + opening * play(opened, pitched, start)
    return tone * rise(t, 0.003)


def pad(pitch: int, strength: float, rng: np.random.Generator) -> Curve:
    """A soft chord tone that swells, its voices a few cents apart."""
    t, hz, n = seconds(LONGEST_S), pitch_hz(pitch), harmonics(13)
    table = wavetable(n**-1.6 * np.exp(-hz * n / (500 + 500 * strength)), hz)
    tone = np.zeros_like(t)
    for cents in (-5.0, 0.0, 5.0):
        tone += play(table, np.full_like(t, hz * 2 ** (cents / 1200)), rng.uniform())
    return tone * rise(t, 0.12)


def electric_piano(pitch: int, strength: float, rng: np.random.Generator) -> Curve:
    """Frequency modulation: a body at 1:1 and a short tine at 14:1."""
    t, hz = seconds(2.6), pitch_hz(pitch)
    phase = 2 * np.pi * hz * t
    body = np.sin(phase + (0.3 + 0.9 * strength) * np.exp(-t / 0.5) * np.sin(phase))
    tine = np.sin(phase + 0.25 * strength * np.exp(-t / 0.06) * np.sin(14 * phase)) if hz * 15 < 15_000 else 0.0
    tone: Curve = (body + 0.3 * tine) * np.exp(-t / 0.9) * rise(t, 0.003)
    return tone


def synth_bass(pitch: int, strength: float, rng: np.random.Generator) -> Curve:
    """Frequency modulation at 1:1 whose index falls: a bite, then a round tone."""
    t, hz = seconds(3.0), pitch_hz(pitch)
    phase = 2 * np.pi * hz * t
    index = 0.7 + (1.0 + 1.5 * strength) * np.exp(-t / 0.09)
    tone: Curve = np.sin(phase + index * np.sin(phase)) * np.exp(-t / 1.2) * rise(t, 0.004)
    return tone
