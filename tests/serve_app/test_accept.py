"""What Accept headers choose, as tools and browsers send them."""

import httpx
import pytest

from tests.serve_app.memory import MemoryJobs

N8N = "application/json,text/html,application/xhtml+xml,application/xml,text/*;q=0.9, image/*;q=0.8, */*;q=0.7"
ALL_TYPES = "audio/wav, audio/mpeg, audio/ogg, audio/flac, application/zip, multipart/mixed"
AUDIO_ELEMENT = "audio/webm,audio/ogg,audio/wav,audio/*;q=0.9,application/ogg;q=0.7,video/*;q=0.6,*/*;q=0.5"
SHORT = {"prompt": "piano", "audio_duration": 10}


@pytest.mark.parametrize("path", ["/generate_music_direct", "/generate_music", "/generate_music_form"])
@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("audio/mpeg", "audio/mpeg"),
        ("audio/mp3", "audio/mpeg"),
        ("audio/flac", "audio/flac"),
        ("audio/x-wav", "audio/wav"),
        ("audio/ogg", "audio/ogg"),
        ("audio/ogg; codecs=opus", "audio/ogg; codecs=opus"),
        ("audio/ogg;codecs=vorbis", "audio/ogg"),
        ("audio/*", "audio/wav"),
        ("audio/mpeg, audio/*;q=0.5", "audio/mpeg"),
        ("audio/mpeg;q=0.5, audio/ogg", "audio/ogg"),
        ("audio/aac, audio/mpeg;q=0.1", "audio/mpeg"),
        (AUDIO_ELEMENT, "audio/wav"),
    ],
)
async def test_an_audio_type_chooses_the_format_where_the_request_names_none(
    client: httpx.AsyncClient, jobs: MemoryJobs, path: str, accept: str, media_type: str
) -> None:
    response = await client.post(path, json=SHORT, headers={"Accept": accept})
    assert (response.status_code, response.headers["content-type"]) == (200, media_type)
    (submission,) = jobs.submissions.values()
    assert submission.request_json["format"] == submission.audio_format


async def test_a_format_in_the_request_or_in_the_route_wins_over_accept(
    client: httpx.AsyncClient, wav_file: bytes
) -> None:
    named = await client.post(
        "/generate_music_direct", json=SHORT | {"format": "flac"}, headers={"Accept": "audio/wav"}
    )
    assert named.headers["content-type"] == "audio/flac"
    files = {"audio_file": ("a.wav", wav_file)}
    mp3 = await client.post("/generate_music_with_audio_direct_mp3", files=files, headers={"Accept": "audio/wav"})
    assert mp3.headers["content-type"] == "audio/mpeg"
    queued = await client.post("/generate_music_async", json=SHORT, headers={"Accept": "audio/mpeg"})
    assert queued.status_code == 200


async def test_audio_types_that_are_not_made_are_406_and_make_no_song(
    client: httpx.AsyncClient, jobs: MemoryJobs
) -> None:
    response = await client.post("/generate_music_direct", json=SHORT, headers={"Accept": "audio/aac"})
    assert (response.status_code, response.json()["code"]) == (406, "not_acceptable")
    assert "audio/wav, audio/mpeg, audio/flac, audio/ogg" in response.json()["detail"]
    assert jobs.views == {}


async def test_a_result_of_another_type_than_accept_names_is_406(client: httpx.AsyncClient) -> None:
    request_id = (await client.post("/generate_music", json=SHORT | {"format": "opus"})).json()["request_id"]
    for accept, status in (
        ("audio/wav", 406),
        ("audio/opus", 200),
        ("audio/ogg", 200),
        ("audio/ogg; codecs=vorbis", 406),
        ("audio/wav, */*;q=0.1", 200),
        (AUDIO_ELEMENT, 200),
    ):
        response = await client.get(f"/result/{request_id}", headers={"Accept": accept})
        assert response.status_code == status, accept


@pytest.mark.parametrize("accept", [N8N, ALL_TYPES, "application/json, text/plain, */*", "text/html, image/*, *; q=.2"])
async def test_what_tools_send_by_habit_gets_what_the_route_is_for(client: httpx.AsyncClient, accept: str) -> None:
    made = await client.post("/generate_music", json=SHORT, headers={"Accept": accept.replace("audio/", "x/")})
    request_id = made.headers.get("x-request-id") or made.json()["request_id"]
    result = await client.get(f"/result/{request_id}", headers={"Accept": accept})
    assert result.headers["content-type"] == "audio/wav"
    direct = await client.post("/generate_music_direct", json=SHORT, headers={"Accept": accept})
    assert direct.headers["content-type"] == "audio/wav"
