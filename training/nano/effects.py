"""What a mixing desk adds: a place between the loudspeakers, a room, and a limit to the peaks."""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from acestep_engine.params import MODEL_SAMPLE_RATE_HZ as SAMPLE_RATE_HZ

Stereo = NDArray[np.float32]  # (2, N)


@dataclass(frozen=True)
class Room:
    """A reverberation: seconds to fall by 60 dB, before the first echo, and the level of it in the mix."""

    decay_s: float
    delay_s: float
    level: float


ROOMS: dict[str, Room] = {
    "studio": Room(0.35, 0.006, 0.30),
    "plate": Room(0.8, 0.012, 0.30),
    "hall": Room(1.4, 0.022, 0.36),
}


def pan_gains(pan: float) -> tuple[float, float]:
    """Gains of left and right with constant power, for a place from -1 (left) to 1 (right)."""
    angle = (pan + 1.0) * np.pi / 4.0
    return float(np.cos(angle) * np.sqrt(2.0)), float(np.sin(angle) * np.sqrt(2.0))


def reverberate(send: NDArray[np.float32], room: str) -> Stereo:
    """The echo (2, N) of a mono signal (N,) in one of ROOMS. Raises KeyError for another room."""
    length = send.shape[0]
    size = _fast_size(length + round(SAMPLE_RATE_HZ * (ROOMS[room].decay_s + ROOMS[room].delay_s)))
    wet = np.fft.irfft(np.fft.rfft(send, size) * _response(room, size), size)[:, :length]
    return wet.astype(np.float32, copy=False)


@functools.lru_cache(maxsize=8)
def _response(room: str, size: int) -> NDArray[np.complex64]:
    """The spectrum (2, size/2 + 1) of noise that dies away, the high sooner than the low, different left and right."""
    shape = ROOMS[room]
    length, start = round(shape.decay_s * SAMPLE_RATE_HZ), round(shape.delay_s * SAMPLE_RATE_HZ)
    rng = np.random.Generator(np.random.PCG64(list(ROOMS).index(room)))
    noise = np.fft.rfft(rng.standard_normal((2, length)))
    hz = np.fft.rfftfreq(length, 1 / SAMPLE_RATE_HZ)
    t = np.arange(length) / shape.decay_s / SAMPLE_RATE_HZ  # 0..1, at 1 it is 60 dB down
    echo = np.zeros((2, length))
    for low_hz, high_hz, speed in ((200, 900, 1.0), (900, 3500, 1.15), (3500, 9000, 1.7)):
        band = np.fft.irfft(noise * ((hz >= low_hz) & (hz < high_hz)), length)
        echo += band * 10.0 ** (-3.0 * speed * t)
    echo *= shape.level / np.sqrt(np.sum(echo**2, axis=1, keepdims=True))
    padded = np.zeros((2, size), dtype=np.float32)
    padded[:, start : start + length] = echo
    return np.fft.rfft(padded).astype(np.complex64, copy=False)


def _fast_size(least: int) -> int:
    """The smallest product of a power of two and 1, 3, 5, 9 or 15 that is at least `least`."""
    return min(odd << max(0, -(-least // odd) - 1).bit_length() for odd in (1, 3, 5, 9, 15))


def limit(audio: Stereo, knee: float = 0.6, peak: float = 0.9) -> Stereo:
    """Peaks above `knee` bent smoothly so that none passes `peak`; what is below stays as it is."""
    size = np.abs(audio)
    over = size > knee
    bent = audio.copy()
    bent[over] = np.sign(audio[over]) * (knee + (peak - knee) * np.tanh((size[over] - knee) / (peak - knee)))
    return bent
