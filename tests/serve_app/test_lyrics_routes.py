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


async def test_what_is_not_sung_is_said_to_be_instrumental(client: httpx.AsyncClient) -> None:
    for lyrics in ("", "[inst]"):
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
