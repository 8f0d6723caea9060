"""Made signals whose truth is known to the sample, (2, N) float32 at 44.1 kHz."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

RATE_HZ = 44_100
Audio = npt.NDArray[np.float32]


def tones(frequencies_hz: Sequence[float], seconds: float, level: float = 0.1) -> Audio:
    """Steady sines, each of the level."""
    time = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    wave = sum((level * np.sin(2 * np.pi * hz * time) for hz in frequencies_hz), np.zeros(len(time)))
    return np.stack([wave, wave]).astype(np.float32)


def noise(seconds: float, level: float = 0.1, seed: int = 0) -> Audio:
    """White noise of that root mean square, each channel its own."""
    return (level * np.random.default_rng(seed).standard_normal((2, round(seconds * RATE_HZ)))).astype(np.float32)


def beat(bpm: float, seconds: float, seed: int = 0) -> Audio:
    """Kick on the beat, snare on every other, a hat on every half."""
    rng = np.random.default_rng(seed)
    wave = np.zeros(round(seconds * RATE_HZ))
    for number, start_s in enumerate(np.arange(0, seconds - 0.3, 30 / bpm)):
        start = round(start_s * RATE_HZ)
        time = np.arange(round(0.2 * RATE_HZ)) / RATE_HZ
        stroke = 0.1 * rng.standard_normal(len(time)) * np.exp(-time / 0.02)
        if number % 2 == 0:
            stroke += 0.5 * np.sin(2 * np.pi * 60 * time) * np.exp(-time / 0.05)
        if number % 4 == 2:
            stroke += 0.25 * rng.standard_normal(len(time)) * np.exp(-time / 0.05)
        wave[start : start + len(time)] += stroke
    return np.stack([wave, wave]).astype(np.float32)
