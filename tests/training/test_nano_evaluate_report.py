"""What is asked of the model, what is heard, and how the two are told."""

import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.training.evaluate_sounds import RATE_HZ, tones
from training.nano.compose import FIRST_HELD_OUT_SEED, Wish, compose
from training.nano.evaluate.clips import spectrogram_pixels, write_clip
from training.nano.evaluate.hear import Heard
from training.nano.evaluate.keys import Key
from training.nano.evaluate.report import Clip, Mark, at_least, percent, share, show_leads, show_marks, show_worst
from training.nano.evaluate.songs import follow_marks, time_marks
from training.nano.evaluate.trials import Asked, Trial, asked_of, held_out_trials
from training.nano.words import FAMILIES

PIECE = compose(1, Wish(duration_s=1.0, lead="flute", bpm=92, drums=True, mode="minor"))
ASKED = Asked(bpm=92, drums=True, lead="flute", mode="minor", with_drums=True)
HEARD = Heard(bpm=92.0, drums=0.9, leads={"flute": 0.8, "piano": 0.2}, key=Key(9, minor=0.9), tonal_db=20.0)
WRONG = Heard(bpm=123.0, drums=0.1, leads={"flute": 0.3, "piano": 0.7}, key=Key(0, minor=0.1), tonal_db=5.0)


def clip(heard: Heard, prompt: str = "flute", asked: Asked = ASKED) -> Clip:
    return Clip(Trial(PIECE, prompt, 7, asked), heard)


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("wooden flute melody, 92 bpm, drum kit, minor key", ASKED),
        ("a calm jazz piece for flute, tempo 92 bpm", Asked(92, None, "flute", None, True)),
        ("jazz played by wooden flute, key of e flat minor", Asked(None, None, "flute", "minor", True)),
        ("electric piano chords, slow, with drums", Asked(None, True, None, None, True)),
        ("jazz, calm, instrumental", Asked(None, None, None, None, True)),
    ],
)
def test_a_prompt_asks_for_what_it_says_and_no_more(prompt: str, asked: Asked) -> None:
    assert asked_of(PIECE, prompt) == asked


def test_the_chords_of_another_instrument_are_not_taken_for_the_lead() -> None:
    piano = replace(PIECE, lead="piano")
    assert asked_of(piano, "electric piano chords, 92 bpm").lead is None
    assert asked_of(piano, "electric piano chords, grand piano").lead == "piano"


def test_held_out_trials_are_always_the_same_pieces_that_no_training_saw() -> None:
    trials = held_out_trials(12, 1.0)
    assert trials == held_out_trials(12, 1.0)
    assert all(trial.piece.seed >= FIRST_HELD_OUT_SEED for trial in trials)
    assert len({trial.prompt for trial in trials}) == len({trial.seed for trial in trials}) == 12


def test_as_much_is_asked_as_captions_say() -> None:
    asked = [trial.asked for trial in held_out_trials(200, 1.0)]
    for name, part in (("bpm", 0.85), ("lead", 0.90), ("drums", 0.80), ("mode", 0.75)):
        said = sum(getattr(one, name) is not None for one in asked) / len(asked)
        assert said == pytest.approx(part, abs=0.09), name
    assert {one.lead for one in asked} >= set(FAMILIES)


def test_what_is_heard_is_judged_by_what_was_asked_and_nothing_else() -> None:
    assert HEARD.verdicts(ASKED) == {"tempo": True, "drums": True, "lead": True, "mode": True}
    assert WRONG.verdicts(ASKED) == {"tempo": False, "drums": False, "lead": False, "mode": False}
    assert WRONG.verdicts(Asked(None, None, None, None, True)) == {}
    assert WRONG.verdicts(Asked(92, False, None, None, False)) == {"drums": True}


def test_a_clip_tells_what_was_heard_instead() -> None:
    assert clip(HEARD).missed == ()
    assert clip(WRONG).missed == ("123 bpm", "no drums", "piano leads", "major")


def test_shares_count_only_what_was_asked() -> None:
    verdicts = [{"lead": True}, {"lead": False, "mode": True}, {}]
    assert share(verdicts, "lead") == (1, 2)
    assert percent((1, 2)) == "50 % of 2"
    assert percent((0, 0)) == "none asked"
    assert at_least((3, 4), 0.75)
    assert not at_least((2, 4), 0.75)
    assert not at_least((0, 0), 0.0)


def test_marks_hold_at_their_thresholds_and_not_below() -> None:
    right, wrong = clip(HEARD), clip(WRONG)
    enough = follow_marks([right] * 19 + [replace(wrong, heard=replace(WRONG, tonal_db=20.0))], [right], [right])
    assert [mark.holds for mark in enough] == [True] * 5
    few = follow_marks([right] + [wrong] * 3, [right], [right])
    assert [mark.holds for mark in few] == [False] * 5
    assert few[0].reached == "25 % of 4"
    assert few[0].renderings == "100 % of 1"


def test_speed_holds_by_the_typical_song() -> None:
    assert [mark.holds for mark in time_marks(2.9, [7.0, 7.5, 9.0])] == [True, True]
    assert [mark.holds for mark in time_marks(3.1, [7.0, 8.5, 9.0])] == [False, False]


def test_the_worst_clips_come_first_with_their_prompt_and_seed() -> None:
    table = show_worst([clip(HEARD, "good"), clip(WRONG, "bad"), clip(replace(HEARD, tonal_db=1.0), "noisy")], count=2)
    rows = table.splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == ["bad", "noisy"]
    assert "123 bpm, no drums, piano leads, major" in rows[0]
    assert "| 7 " in rows[0]


def test_leads_that_are_taken_for_others_are_counted() -> None:
    table = show_leads([clip(HEARD), clip(WRONG), clip(WRONG)], [clip(HEARD)])
    assert table.splitlines()[2].split("|")[1:4] == [" flute      ", " piano 2, flute 1 ", " flute 1             "]


def test_a_mark_that_does_not_hold_is_seen() -> None:
    shown = show_marks([Mark("tempo", "at least 75 %", "70 %", False), Mark("clicks", "none", "none", True)])
    assert shown.splitlines()[2].rstrip(" |").endswith("NO")
    assert shown.splitlines()[3].rstrip(" |").endswith("yes")


def test_a_clip_is_written_as_sound_and_as_a_picture(tmp_path: Path) -> None:
    audio = tones([440.0], 1.0)
    write_clip(tmp_path / "clips", "song", audio)
    sound, rate = soundfile.read(tmp_path / "clips" / "song.wav", dtype="float32")
    assert rate == RATE_HZ
    assert np.allclose(sound.T, audio, atol=1e-4)
    content = (tmp_path / "clips" / "song.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    assert (width, height) == (86, 256)
    start = content.index(b"IDAT") + 4
    (length,) = struct.unpack(">I", content[start - 8 : start - 4])
    rows = np.frombuffer(zlib.decompress(content[start : start + length]), np.uint8).reshape(height, -1)
    assert not rows[:, 0].any()
    assert np.array_equal(rows[:, 1:].reshape(height, width, 3), spectrogram_pixels(audio))


def test_a_deep_tone_is_bright_at_the_bottom_of_the_picture() -> None:
    pixels = spectrogram_pixels(tones([100.0], 1.0))
    brightness = pixels.sum(axis=2, dtype=np.int64).mean(axis=1)
    assert brightness.argmax() > 230
    assert brightness[:100].max() < 100
