"""What is measured by plain signal processing: tempo, rhythm, notes against noise, errors, clicks."""

import numpy as np
import pytest

from tests.training.evaluate_sounds import RATE_HZ, beat, noise, tones
from training.nano.compose import Wish, compose
from training.nano.evaluate.codec import codec_marks, window_seams
from training.nano.evaluate.roundtrip import CLICK, click_ratio, mel_error_nepers
from training.nano.evaluate.spectra import log_mel, magnitudes
from training.nano.evaluate.tempo import rhythm_similarity, same_tempo, tempo_bpm
from training.nano.evaluate.tonality import tonal_to_noise_db
from training.nano.evaluate.transposition import transposition
from training.nano.render import render


@pytest.mark.parametrize("bpm", [60, 97, 128.5, 180])
def test_the_tempo_of_a_beat_is_found_but_for_the_octave(bpm: float) -> None:
    found = tempo_bpm(beat(bpm, 8.0))
    assert min(abs(found - octave * bpm) for octave in (0.5, 1, 2)) < 0.5


@pytest.mark.parametrize(("genre", "bpm"), [("jazz", 74), ("jazz", 152), ("funk", 103), ("house", 124), ("reggae", 90)])
def test_the_tempo_of_a_rendering_is_found_also_where_it_swings(genre: str, bpm: int) -> None:
    piece = compose(7, Wish(duration_s=8.0, genre=genre, bpm=bpm, drums=True))
    assert same_tempo(tempo_bpm(render(piece)), bpm)


def test_tempos_within_six_percent_or_an_octave_are_the_same() -> None:
    assert same_tempo(105.9, 100)
    assert same_tempo(94.1, 100)
    assert same_tempo(201, 100)
    assert same_tempo(49, 100)
    assert not same_tempo(107, 100)
    assert not same_tempo(150, 100)
    assert not same_tempo(25, 100)


def test_silence_has_a_tempo_nobody_trips_over() -> None:
    assert tempo_bpm(np.zeros((2, 4 * RATE_HZ), np.float32)) == 50.0


def test_the_same_rhythm_in_other_sounds_is_alike_and_another_tempo_is_not() -> None:
    reference = beat(100, 6.0)
    assert rhythm_similarity(beat(100, 6.0, seed=3) + tones([440], 6.0), reference) > 0.8
    assert rhythm_similarity(beat(131, 6.0), reference) < 0.3
    assert rhythm_similarity(reference, reference) == pytest.approx(1.0, abs=1e-3)


def test_a_rhythm_that_comes_a_little_late_is_the_same_rhythm() -> None:
    reference = beat(100, 6.0)
    late = np.roll(reference, round(0.03 * RATE_HZ), axis=1)
    assert rhythm_similarity(late, reference) > 0.9


def test_notes_stand_out_of_noise_by_as_much_as_they_are_louder() -> None:
    chord = tones([261.6, 329.6, 392.0], 2.0)
    quiet, loud = (tonal_to_noise_db(chord + noise(2.0, level)) for level in (0.01, 0.1))
    assert quiet - loud == pytest.approx(20, abs=1)
    assert tonal_to_noise_db(chord) > 40
    assert tonal_to_noise_db(noise(2.0)) < -10


def test_what_is_too_soft_is_not_judged_to_be_noise() -> None:
    chord = tones([440.0, 550.0], 2.0)
    fading = np.concatenate([chord, noise(1.0, 1e-4)], axis=1)
    assert tonal_to_noise_db(fading) == pytest.approx(tonal_to_noise_db(chord), abs=1)
    assert tonal_to_noise_db(noise(1.0, 1e-5)) == -np.inf


def test_music_played_half_as_loud_is_off_by_the_logarithm_of_two() -> None:
    audio = render(compose(3, Wish(duration_s=2.0)))
    assert mel_error_nepers(audio, audio) == 0
    assert mel_error_nepers(0.5 * audio, audio) == pytest.approx(np.log(2), rel=0.01)


def test_what_is_softer_than_sixty_decibels_below_the_peak_is_not_compared() -> None:
    chord = tones([440.0], 1.0, 0.5)
    assert mel_error_nepers(chord + noise(1.0, 1e-5), chord) < 0.05


def test_silence_is_no_reference() -> None:
    with pytest.raises(ValueError, match="silent"):
        mel_error_nepers(noise(0.5), np.zeros((2, RATE_HZ // 2), np.float32))


def test_audio_that_is_not_stereo_is_refused_with_its_shape() -> None:
    with pytest.raises(ValueError, match=r"\(1, 100\)"):
        log_mel(np.zeros((1, 100), np.float32))
    with pytest.raises(ValueError, match=r"\(2, 0\)"):
        magnitudes(np.zeros((2, 0), np.float32), 512, 128)


def test_a_step_in_the_waveform_clicks() -> None:
    chord = tones([220.0, 277.2], 1.0)
    broken = chord.copy()
    broken[1, 20_000:] += 0.03
    assert click_ratio(chord, 20_000) < 2
    assert click_ratio(broken, 20_000) > 2 * CLICK


def test_a_stroke_of_a_drum_is_no_click() -> None:
    drums = beat(120, 4.0)
    strokes = [round(number * 0.25 * RATE_HZ) for number in range(1, 14)]
    assert max(click_ratio(drums, sample) for sample in strokes) < CLICK


def test_no_seam_can_be_judged_outside_of_the_audio() -> None:
    with pytest.raises(ValueError, match="50000"):
        click_ratio(tones([440.0], 1.0), 50_000)


def test_a_short_song_has_no_window_seams_and_a_long_one_has_some_within_it() -> None:
    assert window_seams(2 * RATE_HZ) == []
    seams = window_seams(30 * RATE_HZ)
    assert seams[0] == 16 * 4096
    assert len(seams) == 3
    assert max(seams) < 30 * RATE_HZ


def test_a_codec_that_changes_nothing_holds_all_marks_and_a_poor_one_none() -> None:
    pieces = [render(compose(seed, Wish(duration_s=4.0))) for seed in range(2)]
    assert all(mark.holds for mark in codec_marks(pieces, pieces))
    poor = [audio + noise(4.0, 0.05) for audio in pieces]
    for audio in poor:
        audio[:, 16 * 4096 :] += 5.0
    assert not any(mark.holds for mark in codec_marks(pieces, poor))


@pytest.mark.parametrize("semitones", [0, 1, 5, 11])
def test_chords_of_another_key_have_to_be_moved(semitones: int) -> None:
    chord_hz = [130.8, 329.6, 392.0, 493.9]
    moved = tones([hz * 2 ** (semitones / 12) for hz in chord_hz], 3.0)
    assert transposition(tones(chord_hz, 3.0), moved) == semitones


def test_a_piece_goes_on_in_its_key_and_is_told_from_itself_in_another() -> None:
    piece, elsewhere = (render(compose(7, Wish(duration_s=22.0, key=key, drums=True))) for key in (2, 6))
    first, following = slice(10 * RATE_HZ), slice(10 * RATE_HZ, None)
    assert transposition(piece[:, following], piece[:, first]) == 0
    assert transposition(piece[:, following], elsewhere[:, first]) == 4
