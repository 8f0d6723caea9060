"""How the model reads lyrics, as people see it who look for a wrong pronunciation."""

import httpx
import pytest

from serve_app import openapi
from tests.serve_app.memory import MemoryJobs

LYRICS = "[verse]\n[lang:de] Ich zähle 3 Rosen\n\n東京の夜\n"


@pytest.mark.parametrize("way", ["query", "json", "form"])
async def test_every_line_tells_its_language_its_spelling_and_its_tokens(
    client: httpx.AsyncClient, jobs: MemoryJobs, way: str
) -> None:
    asked = {"lyrics": LYRICS, "vocal_language": "JA"}
    if way == "query":
        response = await client.get("/lyrics/tokens", params=asked)
    else:
        response = await client.post("/lyrics/tokens", **({"json": asked} if way == "json" else {"data": asked}))
    assert response.status_code == 200, response.text
    read = openapi.LyricsRead.model_validate(response.json())
    assert [(line.number, line.language, line.source) for line in read.lines] == [
        (1, "en", "tag"),
        (2, "de", "given"),
        (4, "ja", "given"),
    ]
    assert read.lines[1].text == "Ich zähle 3 Rosen"
    assert read.lines[1].spelling == "ich zähle drei rosen"
    assert read.lines[2].spelling.isascii()
    assert all(len(line.ids) == len(line.tokens) > 1 for line in read.lines)
    assert read.lines[1].tokens[0] == "[de]"
    assert (read.vocal_language, read.instrumental, read.limit) == ("ja", False, 8_192)
    assert read.total == 1 + sum(len(line.ids) for line in read.lines) + 5  # the start, and the end of each line
    assert not jobs.views


async def test_brackets_and_headings_that_are_read_as_words_are_noted(client: httpx.AsyncClient) -> None:
    asked = {"lyrics": "[verse]\n(Chorus)\n[guitar solo]\nla la"}
    read = openapi.LyricsRead.model_validate((await client.post("/lyrics/tokens", json=asked)).json())
    assert [line.notes for line in read.lines] == [
        [],
        ["'(Chorus)' is read as words: the structure tag is [chorus]"],
        ["'[guitar solo]' is read as words: it is not a structure tag of the model"],
        [],
    ]


async def test_what_was_left_out_and_taken_is_noted(client: httpx.AsyncClient) -> None:
    asked = {"lyrics": "[ti:Lied]\n## Chorus\n[00:12.00]Ich gehe *heute* durch die Straßen"}
    read = openapi.LyricsRead.model_validate((await client.post("/lyrics/tokens", json=asked)).json())
    assert [(line.number, line.text, line.language, line.notes) for line in read.lines] == [
        (2, "[chorus]", "en", ["'## Chorus' is read as [chorus]"]),
        (3, "Ich gehe heute durch die Straßen", "de", ["'[00:12.00]' is left out", "'*' is left out"]),
    ]


@pytest.mark.parametrize("route", ["/generate_music_async", "/generate_music"])
@pytest.mark.parametrize(
    "fields",
    [
        {"lyrics": "la\n" * 3333},
        {"task": "edit", "source_request_id": "x", "edit_target_lyrics": "a " * 5000},
    ],
)
async def test_a_song_whose_lyrics_are_certainly_too_long_is_refused_before_it_is_a_job(
    client: httpx.AsyncClient, jobs: MemoryJobs, route: str, fields: dict[str, str]
) -> None:
    response = await client.post(route, json=fields)
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == list(fields)[-1]
    assert "tokens or more, the limit is 8192" in response.json()["detail"]
    assert not jobs.views


async def test_lyrics_that_are_too_long_for_a_song_can_be_looked_at(client: httpx.AsyncClient) -> None:
    read = (await client.post("/lyrics/tokens", json={"lyrics": "la\n" * 3333})).json()
    assert read["total"] > read["limit"]


@pytest.mark.parametrize("end", ["\n", "\r", "\v", "\f", "\u2028", "\\n"])
async def test_lyrics_of_a_form_end_their_lines_however_the_client_writes_it(
    client: httpx.AsyncClient, end: str
) -> None:
    response = await client.post("/lyrics/tokens", data={"lyrics": f"[verse]{end}[lang:de]Hallo"})
    read = openapi.LyricsRead.model_validate(response.json())
    assert [(line.number, line.text) for line in read.lines] == [(1, "[verse]"), (2, "Hallo")]


@pytest.mark.parametrize(
    "fields",
    [
        {"lyrics": "[verse]\n[lang:tlh] nuqneH"},
        {"task": "edit", "source_request_id": "x", "edit_target_lyrics": "[verse]\n[lang:tlh] nuqneH"},
    ],
)
async def test_a_song_in_an_unknown_language_is_refused_before_it_is_a_job(
    client: httpx.AsyncClient, jobs: MemoryJobs, fields: dict[str, str]
) -> None:
    response = await client.post("/generate_music_async", json=fields)
    assert response.status_code == 422
    name = list(fields)[-1]
    assert response.json()["errors"][0]["field"] == name
    assert "line 2: 'tlh' is no language of lyrics" in response.json()["detail"]
    assert not jobs.views


async def test_what_is_not_sung_is_said_to_be_instrumental(client: httpx.AsyncClient) -> None:
    for lyrics in ("", "[inst]", "\ufeff[inst]\r\n", "[inst]\\n[inst]"):
        read = (await client.post("/lyrics/tokens", json={"lyrics": lyrics})).json()
        assert read["instrumental"] is True


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"lyrics": "[lang:tlh] nuqneH"}, "lyrics: line 1: 'tlh' is no language of lyrics"),
        ({"lyrics": "la", "vocal_language": "xx"}, "vocal_language: 'xx' is no language of lyrics"),
        ({"lyrics": "x" * 10_001}, "lyrics: 10,001 characters are over the limit of 10,000"),
        ({"lyric": "la"}, "the name here is lyrics"),
        ({"lyrixs": "la"}, "did you mean lyrics?"),
        ({}, "lyrics: is missing"),
    ],
)
async def test_lyrics_that_cannot_be_read_are_refused_with_the_reason(
    client: httpx.AsyncClient, fields: dict[str, str], words: str
) -> None:
    response = await client.post("/lyrics/tokens", json=fields)
    openapi.Problem.model_validate(response.json())
    assert response.status_code == 422
    assert words in response.json()["detail"]
