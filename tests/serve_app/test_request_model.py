"""The request model: what it takes, what it refuses and in which words, and what it decides."""

import json
import math
from typing import Any

import pytest

from acestep_engine.params import MAX_SEED
from serve_app.fields import InvalidRequestError
from serve_app.resolve import ResolvedRequest, RouteRules, resolve
from serve_app.schemas import GenerateRequest, parse_generate, parse_initialize


def parse(**fields: Any) -> GenerateRequest:
    return parse_generate(fields)


def resolved_from(**fields: Any) -> ResolvedRequest:
    return resolve(parse(**fields), None, RouteRules(max_songs=8))


def problem_with(**fields: Any) -> str:
    """The one problem of a request, as 'field: problem'."""
    with pytest.raises(InvalidRequestError) as caught:
        parse_generate(fields)
    (problem,) = caught.value.problems
    return f"{problem.field}: {problem.problem}"


def test_an_empty_request_has_the_documented_defaults() -> None:
    request = parse()
    assert (request.format, request.audio_duration, request.infer_step, request.guidance_scale) == (
        "wav",
        60.0,
        60,
        15.0,
    )
    assert (request.scheduler_type, request.cfg_type, request.omega_scale) == ("euler", "apg", 10.0)
    assert (request.guidance_interval, request.guidance_interval_decay, request.min_guidance_scale) == (0.5, 0.0, 3.0)
    assert (request.use_erg_tag, request.use_erg_lyric, request.use_erg_diffusion) == (True, False, True)
    assert (request.manual_seeds, request.oss_steps, request.ref_audio_input) == (None, None, None)
    assert (request.ref_audio_strength, request.lora_name_or_path, request.lora_weight) == (0.5, "none", 1.0)


REFUSED: dict[str, list[object]] = {
    "audio_duration": [240.01, 1e308, math.inf, -math.inf, math.nan, "nan", "1_0", "१", "0x10", ""],
    "infer_step": [0, 201, 10**9, 10**400, 2.5, True, "twenty", "2.5", "٣", [20]],
    "guidance_scale": [-0.1, 200.1, math.nan, False, [15]],
    "guidance_scale_lyric": [200.1, math.inf, "loud"],
    "ref_audio_strength": [-0.1, 1.1],
    "lora_weight": [1e9, -3.01],
    "batch_size": [0, 65, 10**6],
    "retake_variance": [-0.1, 1.1],
    "repaint_end": [-1, 241],
    "edit_n_avg": [0, 11, 1.5],
    "source_index": [-1, 64],
    "vocal_language": ["xx", "klingon", 5],
    "guidance_interval": [2, -0.5],
    "oss_steps": ["a,b", "1000000000", "0", "5,5", "9,3", [1.5], [[1]], {"a": 1}, 20, 20.0],
    "manual_seeds": [
        "abc",
        "1,,2",
        MAX_SEED + 1,
        -2,
        [1] * 10_000,
        1.5,
        True,
        ["x"],
        "9" * 400,
        2.0**60,
        "42.5",
        "[1",
        ",",
        "1,,",
    ],
    "scheduler_type": ["dpm_solver_multistep", "ddim", "", 1, []],
    "cfg_type": ["none", 2],
    "format": ["exe", "wav/../../x", "", 3, ["wav"]],
    "use_erg_tag": [2, 0.5, "maybe", "", []],
    "prompt": ["x" * 2_001, "a\x00b", "\ud800", "esc\x1b[31m", 5, ["a"]],
    "lyrics": ["x" * 1_000_000, "\n" * 100_000, "\x07", "a\udfffb"],
    "lora_name_or_path": [3, "x" * 257, "a\x1bb"],
    "task": ["dance", 1],
    "audio2audio_enable": ["y", -1],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in REFUSED.items() for value in values])
def test_a_value_out_of_range_is_refused_by_its_field(field: str, value: object) -> None:
    problem = problem_with(**{field: value})
    assert problem.startswith(f"{field}: ")
    problem.encode()  # nothing in a message that UTF-8 cannot carry
    assert problem.isprintable()
    assert len(problem) < 250


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"audio_duration": 240.01}, "240.01 s is outside 1 to 240 s"),
        ({"oss_steps": 20}, "20 is no list: name each step to run; how many there are is infer_step"),
        ({"manual_seeds": "42.5"}, "'42.5' is not a seed"),
        ({"infer_step": 500}, "500 is over the limit of 200"),
        ({"prompt": "x" * 2_001}, "2,001 characters are over the limit of 2,000"),
        ({"scheduler_type": "ddim"}, "'ddim' is not one of 'euler', 'heun' or 'pingpong'"),
        ({"batch_size": 65}, "65 is over the limit of 64"),
        (
            {"task": "remix"},
            "'remix' is not one of 'text2music', 'audio2audio', 'retake', 'repaint'",
        ),
        ({"vocal_language": "tlh"}, "'tlh' is no language of lyrics; they are en, de, fr"),
        ({"promt": "a"}, "promt: is not a field of this request; did you mean prompt?"),
        ({"Infer_Steps": 3}, "did you mean infer_step?"),
        ({"callback_url": "http://example.org/" + "a" * 2_048}, "over the limit of 2,048"),
    ],
)
def test_a_refusal_says_the_value_and_the_limit(fields: dict[str, Any], words: str) -> None:
    assert words in problem_with(**fields)


def test_all_wrong_fields_are_named_at_once() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse(infer_step=0, prompt=3, nonsense=1, priority=10)
    assert {problem.field for problem in caught.value.problems} == {"infer_step", "prompt", "nonsense", "priority"}


def test_a_request_made_again_calls_nobody() -> None:
    assert "callback_url" not in resolved_from(callback_url="https://example.org/").request_json
    assert parse(callback_url=" ", priority="5") == parse()


def test_thousands_of_fields_are_refused_without_looking_at_each() -> None:
    assert "over the limit of 200" in problem_with(**{f"f{i}": i for i in range(100_000)})


def test_numbers_and_switches_may_be_written_as_text() -> None:
    request = parse(audio_duration=" 30.0 ", infer_step="20", use_erg_tag="off", use_erg_lyric="on", manual_seeds="7")
    assert (request.audio_duration, request.infer_step, request.manual_seeds) == (30.0, 20, (7,))
    assert (request.use_erg_tag, request.use_erg_lyric) == (False, True)
    assert (parse(use_erg_tag=0).use_erg_tag, parse(use_erg_lyric="Yes").use_erg_lyric) == (False, True)


def test_null_is_not_given_wherever_there_is_a_default() -> None:
    assert parse(**dict.fromkeys(GenerateRequest.model_fields)) == parse()


@pytest.mark.parametrize("value", ["nan", "inf", "1e400", "2.5", "x", "true", "0x10"])
def test_numbers_as_text_are_held_to_the_same_limits(value: str) -> None:
    with pytest.raises(InvalidRequestError):
        parse(infer_step=value)


def test_whole_numbers_may_be_written_with_a_point() -> None:
    assert parse(infer_step=60.0).infer_step == 60


def test_words_with_a_fixed_meaning_ignore_case() -> None:
    assert [parse(format=name).format for name in ("MP3", ".mp3", " .Mp3")] == ["mp3"] * 3
    assert (parse(scheduler_type="Euler").scheduler_type, parse(cfg_type=" APG").cfg_type) == ("euler", "apg")


@pytest.mark.parametrize("text", ["🎸🎶", "שלום, مرحبا", "👩‍👩‍👧‍👦", "नमस्ते\u200d", "日本語\r\nの歌\t"])
def test_every_script_is_kept_intact(text: str) -> None:
    resolved = resolved_from(prompt=text, lyrics=text)
    assert resolved.songs[0].prompt == resolved.songs[0].lyrics == resolved.request_json["lyrics"] == text


@pytest.mark.parametrize(
    ("given", "seed"),
    [
        ("42", 42),
        (42, 42),
        ([5, 6], 5),
        ("5, 6", 5),
        (0, 0),
        (MAX_SEED, MAX_SEED),
        (str(MAX_SEED), MAX_SEED),
        (42.0, 42),
        ("42.0", 42),
        ([42.0], 42),
        ("1e3", 1000),
        ("42,", 42),
        ("[5,6]", 5),
        ('["7"]', 7),
        (" 42 ", 42),
    ],
)
def test_the_first_seed_is_the_one_that_is_used(given: object, seed: int) -> None:
    assert resolved_from(manual_seeds=given).songs[0].seed == seed


@pytest.mark.parametrize("given", [None, "", " ", -1, "-1", [], [-1, 3], "[]"])
def test_no_seed_draws_one_and_reports_it(given: object) -> None:
    drawn = [resolved_from(manual_seeds=given) for _ in range(8)]
    assert len({one.songs[0].seed for one in drawn}) > 1
    assert all(one.request_json["manual_seeds"] == one.songs[0].seed for one in drawn)


def test_a_seed_that_json_readers_would_round_is_reported_as_text() -> None:
    resolved = resolved_from(manual_seeds=MAX_SEED)
    assert resolved.request_json["manual_seeds"] == str(MAX_SEED)


@pytest.mark.parametrize("asked", [-1, 0, -5, "0", -0.5, -1e9])
def test_a_duration_of_zero_or_less_is_drawn_and_reported(asked: object) -> None:
    for _ in range(20):
        resolved = resolved_from(audio_duration=asked)
        assert 30 <= resolved.songs[0].duration_s <= 240
        assert resolved.request_json["audio_duration"] == resolved.songs[0].duration_s


def test_a_duration_under_the_shortest_song_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"0\.99 s is outside 1 to 240 s"):
        resolved_from(audio_duration=0.99)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"guidance_scale": 2.0},
        {"guidance_scale": 2.0, "guidance_interval_decay": 0.5},
        {"guidance_scale": 0},
        {"oss_steps": "1, 20, 60", "manual_seeds": str(MAX_SEED), "audio_duration": -1},
        {"format": "OPUS", "lyrics": "", "use_erg_lyric": True, "priority": 5},
    ],
)
def test_the_resolved_request_posted_again_is_the_same_request(fields: dict[str, Any]) -> None:
    first = resolved_from(**fields)
    again = resolved_from(**json.loads(json.dumps(first.request_json)))
    assert again == first


def test_the_minimum_of_guidance_is_held_under_its_scale_only_where_guidance_decays() -> None:
    assert parse(guidance_scale=2).min_guidance_scale == 3.0
    assert parse(guidance_scale=2, min_guidance_scale=3).min_guidance_scale == 3.0
    refused = problem_with(guidance_scale=2, min_guidance_scale=3, guidance_interval_decay=0.5)
    assert "3 is over guidance_scale, which is 2" in refused
    assert parse(guidance_scale=1, min_guidance_scale=3, guidance_interval_decay=0.5).min_guidance_scale == 3.0


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("de", "de"),
        ("zh-CN", "zh"),
        (" PT_br ", "pt"),
        (None, None),
        ("", None),
        ("auto", None),
        ("unknown", None),
        ("English", "en"),
        ("jp", "ja"),
    ],
)
def test_a_vocal_language_is_read_as_people_write_it(given: str | None, code: str | None) -> None:
    assert resolved_from(vocal_language=given).songs[0].vocal_language == code


def test_options_of_initialize_are_those_that_differ_from_the_documented_defaults() -> None:
    documented = {"bf16": True, "torch_compile": False, "cpu_offload": False, "overlapped_decode": False}
    assert parse_initialize({"checkpoint_path": "", "device_id": 1, **documented}).options == {}
    assert parse_initialize({"bf16": False, "torch_compile": "true"}).options == {"bf16": False, "torch_compile": True}
