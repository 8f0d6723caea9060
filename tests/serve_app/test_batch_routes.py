"""Several songs of one request: each by its number, all as a zip file or as parts."""

import email.policy
import io
import json
import struct
import zipfile
import zlib
from email.message import EmailMessage

import httpx
import pytest

from serve_app import openapi
from tests.serve_app.memory import MemoryJobs

BATCH = {"batch_size": 3, "manual_seeds": "5,6,7", "format": "flac", "infer_step": 20}
ZIP, PARTS = {"Accept": "application/zip"}, {"Accept": "multipart/mixed"}


async def made(client: httpx.AsyncClient, jobs: MemoryJobs) -> tuple[str, list[bytes]]:
    """The id of a batch, and its songs as they were rendered."""
    request_id = (await client.post("/generate_music_async", json=BATCH)).json()["request_id"]
    assert (await jobs.wait(request_id, 5)).status == "completed"
    return request_id, [audio.tobytes() for audio in jobs.audio[request_id]]


def parts_of(response: httpx.Response) -> list[EmailMessage]:
    """The parts of a multipart answer, as a mail reader takes them apart."""
    head = f"Content-Type: {response.headers['content-type']}\r\n\r\n".encode()
    message = email.message_from_bytes(head + response.content, policy=email.policy.HTTP)
    assert isinstance(message, EmailMessage)
    return [part for part in message.iter_parts() if isinstance(part, EmailMessage)]


async def test_each_song_of_a_batch_has_a_number(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    request_id, songs = await made(client, jobs)
    assert len({*songs}) == 3
    for index, song in enumerate(songs):
        response = await client.get(f"/result/{request_id}?index={index}")
        assert (response.content, response.headers["x-seed"]) == (song, str(5 + index))
        assert response.headers["content-disposition"].endswith(f'_{index}.flac"')
    assert (await client.get(f"/result/{request_id}")).content == songs[0]


@pytest.mark.parametrize(("index", "status"), [("3", 404), ("-1", 422), ("x", 422), ("99999", 422), ("", 422)])
async def test_a_number_of_no_song_is_refused(
    client: httpx.AsyncClient, jobs: MemoryJobs, index: str, status: int
) -> None:
    request_id, _ = await made(client, jobs)
    response = await client.get(f"/result/{request_id}?index={index}")
    openapi.Problem.model_validate(response.json())
    assert response.status_code == status


async def test_json_lists_every_song_and_says_of_the_first_what_it_always_said(client: httpx.AsyncClient) -> None:
    body = (await client.post("/generate_music", json=BATCH)).json()
    openapi.Generated.model_validate(body)
    assert [(output["index"], output["seed"]) for output in body["outputs"]] == [(0, 5), (1, 6), (2, 7)]
    assert len({output["audio_path"] for output in body["outputs"]}) == 3
    assert (body["seed"], body["audio_path"]) == (5, body["outputs"][0]["audio_path"])
    for output in body["outputs"]:
        assert (await client.get(output["audio_url"])).headers["x-seed"] == str(output["seed"])


async def test_a_zip_can_be_read_by_readers_that_only_go_forward(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    request_id, songs = await made(client, jobs)
    archive = (await client.get(f"/result/{request_id}?format=zip")).content
    at, read = 0, []
    while archive[at : at + 4] == b"PK\x03\x04":
        flags, method, name_length, extra_length = struct.unpack("<HH16xHH", archive[at + 6 : at + 30])
        assert (flags & 8, method) == (8, zipfile.ZIP_DEFLATED)  # stored, its end could not be found
        inflating = zlib.decompressobj(-zlib.MAX_WBITS)
        read.append(inflating.decompress(archive[at + 30 + name_length + extra_length :]))
        descriptor = archive.index(b"PK\x07\x08", len(archive) - len(inflating.unused_data))
        at = descriptor + 16
    assert read[::2] == songs
    assert len(archive) > sum(map(len, songs))  # nothing was compressed: it would only take time


@pytest.mark.parametrize(("query", "headers"), [("", ZIP), ("?format=zip", {})])
async def test_a_zip_holds_all_songs_and_the_request_that_makes_each_alone(
    client: httpx.AsyncClient, jobs: MemoryJobs, query: str, headers: dict[str, str]
) -> None:
    request_id, songs = await made(client, jobs)
    response = await client.get(f"/result/{request_id}{query}", headers=headers)
    assert response.headers["content-type"] == "application/zip"
    assert response.headers["content-disposition"].endswith('.zip"')
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert [archive.read(name) for name in names if name.endswith(".flac")] == songs
        params = [json.loads(archive.read(name)) for name in names if name.endswith("_input_params.json")]
    for one, song in zip(params, songs, strict=True):
        assert one["batch_size"] == 1
        assert (await client.post("/generate_music_direct", json=one)).content == song


@pytest.mark.parametrize(("query", "headers"), [("", PARTS), ("?format=multipart", {})])
async def test_a_multipart_answer_holds_each_song_with_its_own_headers(
    client: httpx.AsyncClient, jobs: MemoryJobs, query: str, headers: dict[str, str]
) -> None:
    request_id, songs = await made(client, jobs)
    parts = parts_of(await client.get(f"/result/{request_id}{query}", headers=headers))
    assert [part.get_content() for part in parts] == songs
    assert [(part.get_content_type(), part["X-Seed"]) for part in parts] == [("audio/flac", str(n)) for n in (5, 6, 7)]


@pytest.mark.parametrize("path", ["/generate_music", "/generate_music_direct", "/generate_music_form"])
async def test_routes_that_wait_answer_all_songs_too(client: httpx.AsyncClient, path: str) -> None:
    zipped = await client.post(path, json=BATCH, headers=ZIP)
    assert len(zipfile.ZipFile(io.BytesIO(zipped.content)).namelist()) == 6
    assert len(parts_of(await client.post(f"{path}?format=multipart", json=BATCH))) == 3
    first = await client.post(path, json=BATCH, headers={"Accept": "audio/*"})
    assert (first.headers["content-type"], first.headers["x-seed"]) == ("audio/flac", "5")


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/zip, */*;q=0.5", "application/zip"),
        ("application/zip;q=0.3, audio/*;q=0.4", "audio/flac"),
        ("application/zip;q=0", "audio/flac"),
        ("text/html", "audio/flac"),
    ],
)
async def test_accept_weighs_all_kinds(client: httpx.AsyncClient, accept: str, kind: str) -> None:
    response = await client.post("/generate_music_direct", json=BATCH, headers={"Accept": accept})
    assert response.headers["content-type"] == kind


async def test_a_batch_that_is_not_there_is_a_problem_whatever_is_accepted(
    client: httpx.AsyncClient, jobs: MemoryJobs
) -> None:
    jobs.hold()
    request_id = (await client.post("/generate_music_async", json=BATCH)).json()["request_id"]
    for headers in (ZIP, PARTS):
        response = await client.get(f"/result/{request_id}", headers=headers)
        assert (response.status_code, response.json()["code"]) == (400, "job_not_ended")


async def test_the_format_of_the_audio_is_no_format_of_an_answer(client: httpx.AsyncClient) -> None:
    response = await client.post("/generate_music_direct?format=mp3", json=BATCH)
    assert response.status_code == 422
    assert "'mp3' is not one of audio, zip, multipart" in response.json()["detail"]
