"""The eight families cannot be mistaken for one another, whatever the note and however hard it is played."""

import numpy as np
from numpy.typing import NDArray

from training.nano.instruments import sample

LEADS = ("piano", "acoustic guitar", "electric guitar", "organ", "strings", "brass", "flute", "synth", "marimba")
RATE_HZ = 44_100


def _portrait(instrument: str, pitch: int, layer: int) -> NDArray[np.float64]:
    """What one hears of a note in dB: its partials 1 to 10 over their sum, its noise, and its level in eight steps."""
    wave = sample(instrument, pitch, layer)[:RATE_HZ].astype(np.float64)
    wave = np.pad(wave, (0, RATE_HZ - len(wave)))
    hz = 440 * 2 ** ((pitch - 69) / 12)
    power = np.abs(np.fft.rfft(wave * np.hanning(RATE_HZ))) ** 2  # bins of 1 Hz
    partials = np.array([power[round(n * hz) - 12 : round(n * hz) + 13].sum() for n in range(1, 11)])
    between = np.array([power[round(n * hz) + 40 : round((n + 1) * hz) - 40].sum() for n in range(1, 10)])
    levels = np.mean(wave.reshape(20, -1) ** 2, axis=1)[[0, 1, 2, 4, 7, 10, 14, 19]]
    spectrum = np.concatenate([partials, [between.sum()]]) / partials.sum()
    return 10 * np.log10(np.concatenate([spectrum, levels / levels.max()]) + 1e-5)


def test_a_note_sounds_most_like_other_notes_of_its_own_instrument() -> None:
    notes = [(name, pitch, layer) for name in LEADS for pitch in (67, 71, 75) for layer in (0, 1)]
    portraits = np.array([_portrait(*note) for note in notes])
    apart = np.abs(portraits[:, None] - portraits[None]).mean(axis=-1)
    own_pitch = np.array([[a[0] == b[0] and a[1] == b[1] for b in notes] for a in notes])
    apart[own_pitch] = np.inf
    nearest = [notes[int(index)][0] for index in np.argmin(apart, axis=1)]
    assert np.mean([near == note[0] for near, note in zip(nearest, notes, strict=True)]) > 0.95


def test_what_is_struck_dies_away_and_what_is_blown_or_bowed_does_not() -> None:
    for name in LEADS:
        wave = sample(name, 72, 1)
        early, late = (float(np.std(wave[round(at * RATE_HZ) :][:4410])) for at in (0.1, 1.0))
        lasts = name in ("organ", "strings", "brass", "flute", "synth")
        assert (late > 0.75 * early) == lasts, (name, late / early)


def test_a_harder_stroke_is_brighter() -> None:
    for name in ("piano", "acoustic guitar", "brass", "synth"):
        soft, hard = (np.abs(np.fft.rfft(sample(name, 60, layer)[:8192])) ** 2 for layer in (0, 1))
        hz = np.fft.rfftfreq(8192, 1 / RATE_HZ)
        assert (hard @ hz) / hard.sum() > 1.03 * (soft @ hz) / soft.sum(), name
