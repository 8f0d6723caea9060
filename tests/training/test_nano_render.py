"""A rendered piece is clean sound: right length and level, no clicks, in tune, and its families differ."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from training.nano.compose import Wish, compose
from training.nano.instruments import INSTRUMENTS, drums, sample
from training.nano.instruments.oscillators import pitch_hz
from training.nano.render import main, render

RATE_HZ = 44_100


def test_a_rendering_has_the_length_and_the_level_that_are_promised() -> None:
    for seed in range(6):
        audio = render(compose(seed, Wish(duration_s=5.003)))
        assert audio.shape == (2, 220_632)
        assert audio.dtype == np.float32
        assert np.max(np.abs(audio)) <= 0.9
        assert 20 * np.log10(np.sqrt(np.mean(audio**2))) == pytest.approx(-18, abs=0.5)
        assert np.all(np.abs(np.mean(audio, axis=1)) < 1e-3)


def test_a_seed_renders_to_the_same_bytes_again() -> None:
    piece = compose(11, Wish(duration_s=3.0))
    first = render(piece)
    sample.cache_clear()
    assert np.array_equal(first, render(piece))


def test_left_and_right_differ_but_belong_together() -> None:
    left, right = render(compose(2, Wish(duration_s=5.0)))
    assert 0.5 < np.corrcoef(left, right)[0, 1] < 0.99


@pytest.mark.parametrize("name", sorted(INSTRUMENTS))
def test_an_instrument_is_in_tune(name: str) -> None:
    pitch = 40 if "bass" in name else 69
    wave = sample(name, pitch, 1)[4410 : 4410 + 32_768]
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 8 * len(wave)))
    hz = np.fft.rfftfreq(8 * len(wave), 1 / RATE_HZ)
    near = (hz > pitch_hz(pitch - 0.8)) & (hz < pitch_hz(pitch + 0.8))
    found_hz = hz[near][np.argmax(spectrum[near])]
    assert abs(1200 * np.log2(found_hz / pitch_hz(pitch))) < 15


@pytest.mark.parametrize("name", sorted(INSTRUMENTS))
def test_a_note_starts_and_ends_without_a_click(name: str) -> None:
    wave = sample(name, 60, 1)
    assert abs(wave[0]) < 0.02
    assert np.max(np.abs(wave[-20:])) < 0.01


def test_every_drum_of_both_kits_can_be_hit() -> None:
    for kit in drums.KITS:
        for key, level in drums.LEVELS.items():
            assert np.max(np.abs(sample(kit, key, 1))) == pytest.approx(level, rel=0.05)


def test_a_beat_is_heard_at_its_tempo() -> None:
    audio = render(compose(4, Wish(duration_s=8.0, bpm=120, genre="house", drums=True, lead="flute"))).mean(axis=0)
    frames = np.sqrt(np.mean(audio[: len(audio) // 441 * 441].reshape(-1, 441) ** 2, axis=1))  # 10 ms each
    flux = np.maximum(np.diff(frames), 0)
    flux -= flux.mean()
    at = {lag: float(flux[:-lag] @ flux[lag:]) for lag in range(30, 71)}
    assert abs(max(at, key=lambda lag: at[lag]) - 50) <= 1  # half a second


def test_notes_are_heard_on_the_pitches_of_the_score() -> None:
    piece = compose(9, Wish(duration_s=6.0, drums=False, lead="organ"))
    audio = render(piece).mean(axis=0)
    power = np.abs(np.fft.rfft(audio * np.hanning(len(audio)))) ** 2
    hz = np.fft.rfftfreq(len(audio), 1 / RATE_HZ)
    band = (hz > 200) & (hz < 2000)
    classes = np.round(69 + 12 * np.log2(hz[band] / 440)).astype(int) % 12
    chroma = np.bincount(classes, power[band], 12)
    played = {note.pitch % 12 for part in piece.parts for note in part.notes}
    assert {int(np.argmax(chroma))} <= played
    assert sum(chroma[list(played)]) / sum(chroma) > 0.9


def test_the_command_prints_a_caption_and_writes_the_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["3", str(tmp_path / "three.wav")])
    piece = compose(3)
    written, rate_hz = soundfile.read(tmp_path / "three.wav", dtype="float32")
    assert capsys.readouterr().out.count(",") >= 1
    assert rate_hz == RATE_HZ
    assert np.allclose(written.T, render(piece), atol=1e-4)
