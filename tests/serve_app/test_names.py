"""Names of fields: ours, those that are read as ours, those that mean nothing, and hints for all others."""

from typing import Any

import httpx
import pytest

from serve_app.fields import InvalidRequestError
from serve_app.names import ALIASES, IGNORED, OTHER_NAMES, hint
from serve_app.request_fields import translate
from serve_app.schemas import GenerateRequest, parse_generate

VALUES: dict[str, object] = {
    "prompt": "jazz",
    "audio_duration": 12,
    "manual_seeds": 7,
    "infer_step": 5,
    "format": "mp3",
    "guidance_scale": 5,
    "lora_weight": 0.5,
    "src_audio": "a.wav",
}


@pytest.mark.parametrize(("name", "ours"), ALIASES.items())
def test_another_name_of_a_field_is_read_as_the_field(name: str, ours: str) -> None:
    named = translate({name: VALUES[ours]})
    assert parse_generate(named.fields) == parse_generate({ours: VALUES[ours]})


@pytest.mark.parametrize(("name", "ours"), ALIASES.items())
def test_both_names_may_say_the_same_but_not_different_things(name: str, ours: str) -> None:
    assert translate({ours: VALUES[ours], name: VALUES[ours]}).fields == {ours: VALUES[ours]}
    for nothing in (None, ""):
        assert translate({ours: VALUES[ours], name: nothing}).fields == {ours: VALUES[ours]}
        assert translate({ours: nothing, name: VALUES[ours]}).fields == {ours: VALUES[ours]}
    other = "other" if isinstance(VALUES[ours], str) else 3
    with pytest.raises(InvalidRequestError) as caught:
        translate({ours: VALUES[ours], name: other})
    (problem,) = caught.value.problems
    assert problem.field == name
    assert ours in problem.problem


def test_the_same_value_may_be_written_in_two_ways() -> None:
    assert translate({"manual_seeds": "5", "seed": 5.0, "actual_seeds": [5]}).fields["manual_seeds"] == "5"


def test_a_problem_is_told_under_the_name_that_was_sent() -> None:
    named = translate({"steps": 0})
    with pytest.raises(InvalidRequestError) as caught:
        parse_generate(named.fields, named.sent_as)
    assert caught.value.problems[0].field == "steps"


@pytest.mark.parametrize("name", sorted(IGNORED))
def test_what_means_nothing_is_set_aside_and_listed(name: str) -> None:
    named = translate({name: "anything"})
    assert (named.fields, named.ignored) == ({}, (name,))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("style", "the name here is prompt"),
        ("length", "the name here is audio_duration"),
        ("output_format", "the name here is format"),
        ("cfg_strength", "the name here is guidance_scale"),
        ("language", "the name here is vocal_language"),
        ("negative_prompt", "this model takes none"),
        ("time_signature", "say it in prompt"),
        ("instrumental", "send blank lyrics"),
        ("promt", "did you mean prompt?"),
        ("Infer_Steps", "did you mean infer_step?"),
        ("audio_files", None),
        ("foo", None),
        ("keyscales", None),
    ],
)
def test_a_hint_is_about_the_meaning_or_there_is_none(name: str, words: str | None) -> None:
    found = hint(name, GenerateRequest.model_fields)
    assert (words is None and found is None) or (words is not None and found is not None and words in found)


def test_every_hint_names_a_field() -> None:
    assert set(OTHER_NAMES.values()) | set(ALIASES.values()) <= set(GenerateRequest.model_fields)
    assert not set(ALIASES) & (IGNORED | OTHER_NAMES.keys() | GenerateRequest.model_fields.keys())


async def test_names_are_read_on_every_route_and_in_every_body(client: httpx.AsyncClient) -> None:
    sent: dict[str, Any] = {"genre": "jazz", "duration": "12", "steps": "5", "seed": "7", "bf16": "true"}
    for path in ("/generate_music", "/generate_music_async", "/generate"):
        for body in ({"json": sent}, {"data": sent}, {"files": {name: (None, text) for name, text in sent.items()}}):
            answer = await client.post(path, **body, headers={"Accept": "application/json"})
            assert answer.status_code == 200, answer.text
            assert answer.json()["ignored_fields"] == ["bf16"]
