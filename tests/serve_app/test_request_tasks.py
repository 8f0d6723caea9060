"""What each task asks of a request, what a batch draws, and that a resolved request is a request for the same music."""

import json
from typing import Any

import numpy as np
import pytest

from acestep_engine.params import LATENT_RATE_HZ, MAX_DURATION_S, GenerationParams
from deployments.messages import EarlierSong, Upload
from serve_app.errors import HttpProblem
from serve_app.fields import InvalidRequestError
from serve_app.resolve import ResolvedRequest, RouteRules, resolve
from serve_app.schemas import parse_generate
from serve_app.sources import FoundSource

SOURCE_S = 20.0
FRAMES = round(SOURCE_S * LATENT_RATE_HZ)
FILE = FoundSource("audio_file", Upload("5e" * 32, np.zeros(3, np.uint8)), FRAMES, f"upload:{'5e' * 32}")
SUNG = GenerationParams("harp", "[verse]\nla", 18.0, seed=2**60, vocal_language="fr")
SONG = FoundSource("source_request_id", EarlierSong("a" * 32), FRAMES, song=SUNG)

REPAINT = {"task": "repaint", "repaint_start": 2.0, "repaint_end": 8.0}
EXTEND = {"task": "extend", "left_extend_length": 3.0, "right_extend_length": 7.0}
EDIT = {"task": "edit", "edit_target_prompt": "metal"}
TASKS: list[dict[str, Any]] = [{"task": "audio2audio"}, {"task": "retake"}, REPAINT, EXTEND, EDIT]


def resolved(fields: dict[str, Any], found: FoundSource | None = None, **rules: Any) -> ResolvedRequest:
    rules = {"max_songs": 8, **rules}
    return resolve(parse_generate(fields), found, RouteRules(**rules))


def song(fields: dict[str, Any], found: FoundSource | None = None) -> GenerationParams:
    (one,) = resolved(fields, found).songs
    return one


def refusal(fields: dict[str, Any], found: FoundSource | None = None) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        resolved(fields, found)
    (problem,) = caught.value.problems
    return f"{problem.field}: {problem.problem}"


@pytest.mark.parametrize("fields", [task for task in TASKS if task["task"] != "retake"])
def test_tasks_that_begin_from_a_song_need_one(fields: dict[str, Any]) -> None:
    assert refusal(fields).startswith(f"audio_file: is missing: {fields['task']} needs source audio")


def test_a_retake_needs_no_source_and_takes_no_file() -> None:
    made = song({"task": "retake", "manual_seeds": 3, "retake_seeds": "9", "retake_variance": 0.2})
    assert (made.task, made.seed, made.retake_seed, made.retake_variance) == ("retake", 3, 9, 0.2)
    assert "retake takes no audio" in refusal({"task": "retake"}, FILE)


def test_a_retake_of_an_earlier_song_has_its_words_seed_and_length() -> None:
    request = resolved({"task": "retake", "retake_seeds": 9}, SONG)
    (made,) = request.songs
    assert (made.prompt, made.lyrics, made.vocal_language) == (SUNG.prompt, SUNG.lyrics, "fr")
    assert (made.seed, made.duration_s, made.retake_seed) == (SUNG.seed, 18.0, 9)
    own = song({"task": "retake", "manual_seeds": 4, "audio_duration": 12, "vocal_language": None}, SONG)
    assert (own.seed, own.duration_s, own.vocal_language, own.prompt) == (4, 12.0, None, "harp")
    again = resolved(request.request_json)  # needs the earlier job no more
    assert again == request


def test_an_expired_song_can_be_retaken_and_is_no_source() -> None:
    gone = FoundSource("source_request_id", SONG.source, FRAMES, song=SUNG, is_kept=False)
    assert song({"task": "retake"}, gone).seed == SUNG.seed
    with pytest.raises(HttpProblem) as caught:
        resolved(REPAINT, gone)
    assert (caught.value.status, caught.value.code) == (410, "source_gone")


def test_a_task_of_an_earlier_song_has_its_words_where_the_request_gives_none() -> None:
    assert song(EDIT, SONG).prompt == "harp"
    assert song(EDIT | {"prompt": "flute"}, SONG).prompt == "flute"
    assert song(EDIT, SONG).edit_target_lyrics == SUNG.lyrics
    route = resolved(REPAINT, SONG, defaults={"infer_step": 27}).songs[0]
    assert (route.steps, route.lyrics) == (27, SUNG.lyrics)


def test_text2music_takes_no_source() -> None:
    for found in (FILE, SONG):
        assert "text2music takes no source" in refusal({}, found)


def test_a_route_has_a_usual_task_that_a_request_may_change() -> None:
    assert resolved({}, FILE, usual_task="audio2audio").songs[0].task == "audio2audio"
    assert resolved(REPAINT, FILE, usual_task="audio2audio").songs[0].task == "repaint"
    assert resolved({"audio2audio_enable": True}, FILE).songs[0].task == "audio2audio"
    assert "audio2audio_enable: stands for" in refusal(REPAINT | {"audio2audio_enable": True}, FILE)


@pytest.mark.parametrize(
    ("fields", "length_s"), [(EXTEND, 30.0), (REPAINT, SOURCE_S), (EDIT, SOURCE_S), ({"task": "audio2audio"}, SOURCE_S)]
)
def test_a_song_is_as_long_as_its_source_and_what_is_added(fields: dict[str, Any], length_s: float) -> None:
    request = resolved(fields | {"audio_duration": 99}, FILE)
    assert request.songs[0].duration_s == pytest.approx(length_s, abs=0.1)
    assert request.request_json["audio_duration"] == round(request.songs[0].duration_s, 3)


def test_extend_turns_fully_to_new_noise_unless_told_otherwise() -> None:
    assert song(EXTEND, FILE).retake_variance == 1.0
    assert song(EXTEND | {"retake_variance": 0.5}, FILE).retake_variance == 0.5
    assert song(REPAINT, FILE).retake_variance == 0.5


def test_an_extension_up_to_the_longest_song_fits_and_one_over_it_is_told_the_room() -> None:
    room_s = MAX_DURATION_S - SOURCE_S - 0.2
    made = song({"task": "extend", "right_extend_length": room_s}, FILE)
    assert room_s < made.duration_s <= MAX_DURATION_S
    words = refusal({"task": "extend", "left_extend_length": 60, "right_extend_length": 170}, FILE)
    assert words.startswith(
        "right_extend_length: 230 s are too many: the source lasts 19.97 s, so there is room for 219.9"
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"task": "repaint"}, "repaint_end: 0 s is not 0.093 s or more behind repaint_start, 0 s"),
        (REPAINT | {"repaint_start": 8.0}, "repaint_end: 8 s is not"),
        (REPAINT | {"repaint_end": 21.0}, "repaint_end: 21 s is behind the end of the source, 19.97 s"),
        (REPAINT | {"retake_variance": 0}, "retake_variance: 0 would repaint nothing"),
        ({"task": "extend"}, "left_extend_length: there is nothing to add"),
        ({"task": "extend", "right_extend_length": 0.01}, "right_extend_length: there is nothing to add"),
        ({"task": "edit"}, "edit_target_prompt: is missing: give this or edit_target_lyrics"),
        (EDIT | {"edit_n_min": 0.6, "edit_n_max": 0.5}, "edit_n_max: 0.5 is under edit_n_min, which is 0.6"),
        (EDIT | {"edit_n_min": 1}, "edit_n_min: 1 leaves nothing to do of 60 steps"),
        (EDIT | {"scheduler_type": "pingpong"}, "scheduler_type: 'pingpong' edits nothing"),
        (EDIT | {"repaint_start": 1}, "repaint_start: belongs to repaint, but the task is edit"),
        (EDIT | {"retake_variance": 0.1}, "retake_variance: belongs to retake and repaint and extend, but"),
        ({"task": "audio2audio", "retake_seeds": 3}, "retake_seeds: belongs to retake and repaint and extend and edit"),
        ({"batch_size": 9}, "batch_size: 9 is over the limit of 8"),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_reason(fields: dict[str, Any], words: str) -> None:
    assert refusal(fields, FILE).startswith(words)


def test_the_range_of_a_repaint_may_be_the_whole_source() -> None:
    made = song(REPAINT | {"repaint_start": 0, "repaint_end": FILE.duration_s}, FILE)
    assert made.repaint_end_s == FILE.duration_s


def test_an_edit_to_no_words_is_not_an_edit_to_the_same_words() -> None:
    assert song(EDIT | {"edit_target_lyrics": ""}, SONG).edit_target_lyrics == ""


def test_a_batch_has_a_seed_for_each_song_and_draws_those_that_are_missing() -> None:
    request = resolved({"batch_size": 4, "manual_seeds": [5, -1, 2**60]})
    seeds = [one.seed for one in request.songs]
    assert (seeds[0], seeds[2], len({*seeds})) == (5, 2**60, 4)
    assert request.request_json["manual_seeds"] == [5, seeds[1], str(2**60), seeds[3]]
    assert len({one.duration_s for one in resolved({"batch_size": 4, "audio_duration": -1}).songs}) == 1


def test_one_seed_may_be_retaken_several_times() -> None:
    request = resolved({"task": "retake", "batch_size": 3, "manual_seeds": 5, "retake_seeds": "1,2"})
    assert [one.seed for one in request.songs] == [5, 5, 5]
    assert [one.retake_seed for one in request.songs][:2] == [1, 2]
    assert request.request_json["manual_seeds"] == 5
    several = resolved({"task": "retake", "batch_size": 2, "manual_seeds": [5, 6], "retake_seeds": 1})
    assert [one.seed for one in several.songs] == [5, 6]


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("found", [FILE, SONG])
@pytest.mark.parametrize("fields", [{}, *TASKS])
def test_a_resolved_request_posted_again_is_the_same_request(
    fields: dict[str, Any], found: FoundSource, batch_size: int
) -> None:
    needs_none = fields.get("task", "text2music") in ("text2music", "retake")
    first = resolved(fields | {"batch_size": batch_size}, None if needs_none else found)
    again = json.loads(json.dumps(first.request_json))
    if not needs_none and found is FILE:
        named = "ref_audio_input" if fields["task"] == "audio2audio" else "src_audio"
        assert again[named] == FILE.name
        found = FoundSource(named, FILE.source, FRAMES, again[named])
    assert resolved(again, None if needs_none else found) == first
