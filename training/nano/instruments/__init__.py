"""The instruments, as a sampler has them: each note synthesized once per pitch and strength, then kept."""

import functools
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from acestep_engine.params import MODEL_SAMPLE_RATE_HZ as SAMPLE_RATE_HZ
from training.nano.instruments import additive, drums, electronic, plucked
from training.nano.instruments.oscillators import Curve, Wave

LAYERS = 2  # soft and loud
_KEPT_SAMPLES = 900  # of at most 0.8 MB


@dataclass(frozen=True)
class Instrument:
    """How a note sounds: `synthesize(pitch, strength 0..1, rng)` gives it held as long as it lasts, (N,).

    `release_s` is the time it takes to fall silent when it is let go.
    """

    synthesize: Callable[[int, float, np.random.Generator], Curve]
    release_s: float


INSTRUMENTS: dict[str, Instrument] = {
    "piano": Instrument(plucked.piano, 0.18),
    "acoustic guitar": Instrument(plucked.acoustic_guitar, 0.15),
    "electric guitar": Instrument(plucked.electric_guitar, 0.12),
    "organ": Instrument(additive.organ, 0.03),
    "strings": Instrument(additive.strings, 0.16),
    "brass": Instrument(additive.brass, 0.07),
    "flute": Instrument(additive.flute, 0.08),
    "synth": Instrument(electronic.synth, 0.05),
    "marimba": Instrument(plucked.marimba, 0.4),
    "electric piano": Instrument(electronic.electric_piano, 0.12),
    "pad": Instrument(electronic.pad, 0.3),
    "clavinet": Instrument(plucked.clavinet, 0.04),
    "nylon guitar": Instrument(plucked.nylon_guitar, 0.15),
    "bass guitar": Instrument(plucked.bass_guitar, 0.06),
    "upright bass": Instrument(plucked.upright_bass, 0.08),
    "synth bass": Instrument(electronic.synth_bass, 0.05),
}


def layer(velocity: float) -> int:
    """The sample that a velocity in (0, 1] asks for: 0 soft, 1 loud."""
    return int(velocity >= 0.7)


@functools.lru_cache(maxsize=_KEPT_SAMPLES)
def sample(instrument: str, pitch: int, layer: int) -> Wave:
    """A note (N,) float32, or a stroke of a drum kit, the same at every call; it is shared and read-only.

    Tones have a level of 0.1 where they are loudest, strokes the peak of drums.LEVELS. Raises KeyError for an
    instrument that there is not.
    """
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(f"{instrument} {pitch} {layer}".encode())))
    strength = (0.35, 0.9)[layer]
    if instrument in drums.KITS:
        wave = drums.hit(instrument, pitch, strength, rng)
        wave = wave * (drums.LEVELS[pitch] / np.max(np.abs(wave)))
    else:
        wave = INSTRUMENTS[instrument].synthesize(pitch, strength, rng)
        wave = wave * (0.1 / _loudest(wave))
    wave -= np.mean(wave)
    fade = min(441, len(wave))
    wave[-fade:] *= np.linspace(1.0, 0.0, fade)
    kept = wave.astype(np.float32)
    kept.flags.writeable = False
    return kept


def _loudest(wave: Curve) -> float:
    """The root mean square of the loudest 100 ms."""
    window = SAMPLE_RATE_HZ // 10
    blocks = wave[: len(wave) // window * window].reshape(-1, window)
    return float(np.sqrt(np.max(np.mean(blocks**2, axis=1))))
