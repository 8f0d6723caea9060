"""A composed piece is what it says it is: tempo, key, mode, lead and drums, from its first bar to its end."""

import math

import numpy as np
import pytest
import torch

from acestep_engine.model.attention import rotary_angles
from training.nano.compose import FIRST_HELD_OUT_SEED, Wish, compose
from training.nano.instruments.drums import CLOSED_HAT, CRASH
from training.nano.piece import Piece
from training.nano.score.harmony import SCALES
from training.nano.score.timing import bar_frames, played_bpm, tempo_number
from training.nano.transformer import HEAD_DIM, ROPE_THETA
from training.nano.words import FAMILIES, GENRES, MOODS

PIECES = [compose(seed) for seed in (*range(150), *range(FIRST_HELD_OUT_SEED, FIRST_HELD_OUT_SEED + 50))]


def test_a_seed_gives_the_same_piece_again_and_another_seed_another_one() -> None:
    assert compose(5) == compose(5)
    assert compose(5).parts != compose(6).parts


def test_every_family_genre_mood_mode_and_density_occurs() -> None:
    assert {piece.lead for piece in PIECES} == set(FAMILIES)
    assert {piece.genre for piece in PIECES} == set(GENRES)
    assert {piece.mood for piece in PIECES} == set(MOODS)
    assert {piece.mode for piece in PIECES} == {"major", "minor"}
    assert {piece.density for piece in PIECES} == {"sparse", "medium", "busy"}
    assert {piece.drums for piece in PIECES} == {True, False}
    assert all(60 <= piece.bpm <= 180 for piece in PIECES)


@pytest.mark.parametrize("mode", ["major", "minor"])
@pytest.mark.parametrize("mood", [None, *MOODS])
def test_what_is_wished_for_is_granted(mode: str, mood: str | None) -> None:
    wish = Wish(7.0, 133, 4, mode, "brass", False, "reggae", mood, "sparse")  # type: ignore[arg-type]
    piece = compose(3, wish)
    assert (piece.duration_s, piece.bpm, piece.key, piece.mode, piece.lead) == (7.0, 133, 4, mode, "brass")
    assert (piece.drums, piece.genre, piece.density) == (False, "reggae", "sparse")
    assert mood in (None, piece.mood)


def test_a_tempo_that_is_never_played_is_refused() -> None:
    with pytest.raises(ValueError, match=r"181 bpm is outside 60\.\.180"):
        compose(0, Wish(bpm=181))


def test_rotary_positions_turn_once_twice_and_four_times_in_bars_of_about_the_tempo_asked_for() -> None:
    cosines, sines = rotary_angles(2, HEAD_DIM, ROPE_THETA, torch.device("cpu"))
    turned = torch.atan2(sines[1].abs(), cosines[1]).double()  # of every dimension, in a frame
    for bpm in range(60, 181):
        assert abs(played_bpm(bpm) / bpm - 1) < 0.035
        bar = 240 / played_bpm(bpm) * 44_100 / 4096
        assert bar == pytest.approx(bar_frames(bpm))
        for turns in (1, 2, 4):
            frames = bar / turns
            if frames > 2 * math.pi:  # the fastest turns once in so many
                assert (turned * frames / (2 * math.pi) - 1).abs().min() < 1e-5
    assert len({tempo_number(bpm) for bpm in range(60, 181)}) == 17


def test_each_bar_has_the_chord_that_is_played_in_it() -> None:
    for piece in PIECES:
        bar_s = 240 / played_bpm(piece.bpm)
        assert len(piece.chords) == math.ceil(piece.duration_s / bar_s)
        accompaniment = piece.part("chords")
        assert accompaniment is not None
        for note in accompaniment.notes:
            assert note.pitch % 12 in piece.chords[int(note.start_s / bar_s + 1e-6)]


def test_the_lead_plays_in_every_bar() -> None:
    for piece in PIECES:
        lead = piece.part("lead")
        assert lead is not None
        bar_s = 240 / played_bpm(piece.bpm)
        bars = {int(note.start_s / bar_s + 1e-6) for note in lead.notes}
        assert set(range(int(piece.duration_s / bar_s))) <= bars


def test_all_parts_begin_in_the_first_bar_and_stop_before_the_end() -> None:
    for piece in PIECES:
        for part in piece.parts:
            assert part.notes[0].start_s < 240 / played_bpm(piece.bpm), (piece.seed, part.role)
            assert all(note.start_s < piece.duration_s for note in part.notes)


def test_drums_play_where_the_piece_has_them_and_nowhere_else() -> None:
    assert all((piece.part("drums") is not None) == piece.drums for piece in PIECES)


def _time_on(piece: Piece, pitch_class: int) -> float:
    notes = [note for part in piece.parts if part.role != "drums" for note in part.notes]
    return sum(note.duration_s for note in notes if (note.pitch - piece.key) % 12 == pitch_class)


def test_notes_belong_to_the_key() -> None:
    for piece in PIECES:
        own = sum(_time_on(piece, step) for step in SCALES[piece.mode])
        everything = sum(_time_on(piece, step) for step in range(12))
        assert own / everything > 0.84, piece.seed  # the rest is the leading tone of minor


def test_the_third_tells_the_mode() -> None:
    for piece in PIECES:
        third, other = (3, 4) if piece.mode == "minor" else (4, 3)
        assert _time_on(piece, third) > 4 * _time_on(piece, other), piece.seed


def test_drums_stand_on_the_sixteenths_of_the_tempo() -> None:
    for piece in PIECES:
        drums = piece.part("drums")
        if drums is None or piece.swing:
            continue
        places = np.array([note.start_s for note in drums.notes]) * played_bpm(piece.bpm) / 15
        assert np.allclose(places, np.round(places), atol=1e-6)


def test_swing_delays_the_second_eighth_to_the_triplet() -> None:
    piece = compose(1, Wish(genre="jazz", bpm=120, drums=True, density="busy"))
    drums = piece.part("drums")
    assert drums is not None
    places = {round(note.start_s * played_bpm(120) / 60 % 1, 3) for note in drums.notes}
    assert 0.667 in places
    assert 0.5 not in places


def test_a_fill_ends_each_fourth_bar_and_a_cymbal_follows() -> None:
    piece = compose(8, Wish(genre="rock", bpm=120, drums=True, density="medium"))
    bar_s = 240 / played_bpm(120)
    drums = piece.part("drums")
    assert drums is not None
    places = [note.start_s / bar_s + 1e-6 for note in drums.notes if note.pitch == CLOSED_HAT]  # in bars
    hats = {int(place) for place in places if place % 1 >= 0.5}
    assert hats == {0, 1, 2, 4, 5, 6, 8, 9}
    assert [note.start_s for note in drums.notes if note.pitch == CRASH] == pytest.approx([4 * bar_s, 8 * bar_s])


def test_hands_do_not_play_sixteenths_at_a_fast_tempo() -> None:
    for bpm, fewest_ms, most_ms in ((100, 140, 160), (160, 170, 200)):
        drums = compose(8, Wish(genre="funk", bpm=bpm, drums=True, density="busy")).part("drums")
        assert drums is not None
        hats = [note.start_s for note in drums.notes if note.pitch == CLOSED_HAT]
        assert fewest_ms < 1000 * float(np.min(np.diff(hats))) < most_ms
