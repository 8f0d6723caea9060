"""Tones that last: organ, strings, brass and flute, as harmonics with an envelope, a vibrato and a breath."""

import numpy as np

from training.nano.instruments.oscillators import (
    Curve,
    burst,
    formants,
    harmonics,
    pitch_hz,
    play,
    rise,
    seconds,
    shaped_noise,
    vibrato,
    wavetable,
)

LONGEST_S = 4.5  # a bar at 60 bpm, and a release
_VIOLIN_BODY = ((300.0, 0.3, 4.0), (520.0, 0.3, 4.0), (1000.0, 0.4, -3.0), (2600.0, 0.6, 7.0))
_BELL = ((650.0, 0.6, 3.0), (1300.0, 0.6, 8.0), (2600.0, 0.5, 3.0))


def organ(pitch: int, strength: float, rng: np.random.Generator) -> Curve:
    """Nine drawbars from an octave below to three above, at once loud, in a turning loudspeaker."""
    t, hz = seconds(LONGEST_S), pitch_hz(pitch)
    drawbars = np.zeros(16)  # harmonics of the octave below: 16', 8', 5 1/3', 4', 2 2/3', 2', 1 3/5', 1 1/3', 1'
    drawbars[[0, 1, 2, 3, 5, 7, 9, 11, 15]] = (0.9, 1.0, 0.7, 0.8, 0.35, 0.6, 0.15, 0.2, 0.5)
    table = wavetable(drawbars, hz / 2, rng)
    turning = 2 * np.pi * 6.6 * t
    tone = play(table, hz / 2 * (1 + 0.0022 * np.sin(turning))) * (1 + 0.22 * np.cos(turning))
    click = burst(rng, LONGEST_S, 1500, 5000, 0.004)
    return tone * rise(t, 0.004) + (0.3 + 0.5 * strength) * click


def strings(pitch: int, strength: float, rng: np.random.Generator) -> Curve:
    """Four violins: sawtooth bows a few cents apart, each with a vibrato of its own, and some rosin."""
    t, hz, n = seconds(LONGEST_S), pitch_hz(pitch), harmonics(59)
    amplitude = n**-1.0 * np.exp(-hz * n / (2200 + 6000 * strength)) * formants(hz * n, _VIOLIN_BODY)
    tone = np.zeros_like(t)
    for cents in (-7.0, -2.0, 3.0, 8.0):
        wobble = vibrato(t, rng.uniform(5.0, 6.2), rng.uniform(14, 22), 0.1, rng.uniform(0, 6.28))
        table = wavetable(amplitude, hz)
        tone += play(table, hz * 2 ** (cents / 1200) * wobble, rng.uniform())
    rosin = shaped_noise(rng, LONGEST_S, 2000, 7000)
    return (tone / np.std(tone) + 0.05 * rosin) * rise(t, 0.11 - 0.05 * strength)


def brass(pitch: int, strength: float, rng: np.random.Generator) -> Curve:
    """A trumpet: the tone swells into the bell, brighter the louder, from a little below its pitch."""
    t, hz, n = seconds(LONGEST_S), pitch_hz(pitch), harmonics(39)
    dark = wavetable(n**-1.5 * np.exp(-hz * n / 1200), hz)
    bright = wavetable(n**-0.45 * np.exp(-hz * n / 2800) * formants(hz * n, _BELL), hz)
    bright *= np.std(dark) / np.std(bright)
    brightness = (0.50 + 0.35 * strength) * (0.7 * rise(t, 0.06) + 0.3 * rise(t, 0.35))
    scoop = 2 ** (-80 * np.exp(-t / 0.035) / 1200)
    pitched = hz * scoop * vibrato(t, 5.4, 16.0, 0.22)
    tone = (1 - brightness) * play(dark, pitched) + brightness * play(bright, pitched)
    return tone * rise(t, 0.045) * (0.75 + 0.25 * rise(t, 0.4))


def flute(pitch: int, strength: float, rng: np.random.Generator) -> Curve:
    """Nearly a sine that swells and trembles, with breath around it."""
    t, hz = seconds(LONGEST_S), pitch_hz(pitch)
    amplitude = np.array([1.0, 0.22 + 0.15 * strength, 0.10, 0.03, 0.015])
    trembling = 1 + 0.20 * np.clip((t - 0.15) / 0.2, 0, 1) * np.sin(2 * np.pi * 5.0 * t)
    tone = play(wavetable(amplitude, hz), hz * vibrato(t, 5.0, 10.0, 0.15, 1.0)) * trembling
    breath = 0.07 * shaped_noise(rng, LONGEST_S, 1500, 8000) + 0.05 * shaped_noise(rng, LONGEST_S, hz, 2 * hz)
    chiff = 0.35 * burst(rng, LONGEST_S, 1000, 5000, 0.025)
    return tone * rise(t, 0.07) + breath * trembling * rise(t, 0.01) + chiff
