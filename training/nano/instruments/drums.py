"""Two drum kits, acoustic and electronic: noise, membranes that fall in pitch, and plates of metal.

Keys are those of General MIDI percussion.
"""

import numpy as np

from acestep_engine.params import MODEL_SAMPLE_RATE_HZ as SAMPLE_RATE_HZ
from training.nano.instruments.oscillators import Curve, burst, modes, pitch_hz, rise, seconds, shaped_noise

KICK, RIM, SNARE, CLAP, LOW_TOM, CLOSED_HAT, MID_TOM, OPEN_HAT = 36, 37, 38, 39, 45, 42, 47, 46
CRASH, HIGH_TOM, RIDE, SHAKER = 49, 50, 51, 70

# Peak level and place (-1 left, 1 right) of each.
LEVELS = {
    KICK: 1.0, SNARE: 0.75, RIM: 0.45, CLAP: 0.6, CLOSED_HAT: 0.28, OPEN_HAT: 0.30, CRASH: 0.42, RIDE: 0.26,
    LOW_TOM: 0.75, MID_TOM: 0.7, HIGH_TOM: 0.65, SHAKER: 0.22,
}  # fmt: skip
PANS = {
    KICK: 0.0, SNARE: 0.05, RIM: -0.1, CLAP: 0.1, CLOSED_HAT: 0.35, OPEN_HAT: 0.35, CRASH: -0.4, RIDE: -0.35,
    LOW_TOM: -0.35, MID_TOM: 0.0, HIGH_TOM: 0.3, SHAKER: -0.3,
}  # fmt: skip
KITS = ("acoustic kit", "electronic kit")


def hit(kit: str, key: int, strength: float, rng: np.random.Generator) -> Curve:
    """One stroke of a drum (N,), peak about 1. Raises KeyError for a key that the kits do not have."""
    electronic = kit == "electronic kit"
    if key == KICK:
        return _kick(electronic, strength, rng)
    if key in (LOW_TOM, MID_TOM, HIGH_TOM):
        start_hz = {LOW_TOM: 110.0, MID_TOM: 150.0, HIGH_TOM: 200.0}[key]
        return _membrane(start_hz * 1.25, start_hz, 0.05, 0.22, 0.6) + 0.08 * burst(rng, 0.6, 300, 3000, 0.03)
    if key == SNARE:
        return _snare(electronic, strength, rng)
    if key == CLAP:
        return _clap(rng)
    if key == RIM:
        clicks = modes(np.array([1700.0, 2550.0, 480.0]), np.array([0.012, 0.008, 0.015]), np.array([1, 0.6, 0.5]), 0.1)
        return clicks + 0.2 * burst(rng, 0.1, 2000, 8000, 0.004)
    decay_s = {CLOSED_HAT: 0.03, OPEN_HAT: 0.16, SHAKER: 0.035, RIDE: 0.35, CRASH: 0.55}[key]
    return _metal(key, decay_s, electronic, rng)


def _membrane(start_hz: float, end_hz: float, fall_s: float, decay_s: float, duration_s: float) -> Curve:
    t = seconds(duration_s)
    phase = 2 * np.pi * np.cumsum(end_hz + (start_hz - end_hz) * np.exp(-t / fall_s)) / SAMPLE_RATE_HZ
    tone: Curve = np.sin(phase) * np.exp(-t / decay_s) * rise(t, 0.001)
    return tone


def _kick(electronic: bool, strength: float, rng: np.random.Generator) -> Curve:
    if electronic:
        body = _membrane(210.0, 48.0, 0.035, 0.16, 0.5)
        return body + 0.10 * strength * burst(rng, 0.5, 1500, 6000, 0.004)
    return _membrane(130.0, 58.0, 0.03, 0.10, 0.4) + 0.16 * strength * burst(rng, 0.4, 1200, 5000, 0.006)


def _snare(electronic: bool, strength: float, rng: np.random.Generator) -> Curve:
    low, decay_s = (190.0, 0.10) if electronic else (175.0, 0.13)
    shell = modes(np.array([low, low * 1.75]), np.array([0.07, 0.045]), np.array([0.6, 0.35]), 0.45)
    return shell + (0.20 + 0.08 * strength) * burst(rng, 0.45, 1200, 9000, decay_s)


def _clap(rng: np.random.Generator) -> Curve:
    t, noise = seconds(0.4), shaped_noise(rng, 0.4, 900, 5000)
    hands = sum(np.where(t >= start, np.exp(-(t - start) / 0.006), 0.0) for start in (0.0, 0.011, 0.021))
    clap: Curve = 0.25 * noise * (hands + np.where(t >= 0.03, np.exp(-(t - 0.03) / 0.08), 0.0)) * rise(t, 0.001)
    return clap


def _metal(key: int, decay_s: float, electronic: bool, rng: np.random.Generator) -> Curve:
    """Hats, cymbals and a shaker: high noise, with a cluster of tones that share no fundamental."""
    duration_s = 5 * decay_s + 0.02
    noise = burst(rng, duration_s, 9000 if electronic else 7000, 15_000, decay_s)
    if key == SHAKER:
        return 0.3 * noise * rise(seconds(duration_s), 0.015)
    cluster = pitch_hz(88) * np.array([2.0, 3.0, 4.16, 5.43, 6.79, 8.21])
    tones = modes(cluster * (1.4 if key == RIDE else 1.0), np.full(6, decay_s), np.full(6, 0.05), duration_s)
    return 0.3 * noise + (3.0 if key == RIDE else 1.0) * tones
