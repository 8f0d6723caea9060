"""Every task from a file, from base64, from an earlier upload and from an earlier job, on every kind of route."""

import base64
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.messages import EarlierSong, Submission, Upload
from serve_app import openapi
from tests.serve_app.memory import MemoryJobs, wav

REPAINT = {"task": "repaint", "repaint_start": 0.3, "repaint_end": 1.5}
TASKS: list[dict[str, Any]] = [
    {"task": "audio2audio"},
    REPAINT,
    {"task": "extend", "left_extend_length": 2},
    {"task": "edit", "edit_target_lyrics": "[verse]\nother"},
]
ROUTES = [
    "/generate_music",
    "/generate_music_direct",
    "/generate_music_async",
    "/generate_music_form",
    "/generate_music_with_audio",
    "/generate_music_with_audio_direct_mp3",
]
SONG = wav(seconds=2)
NAME = f"upload:{hashlib.sha256(SONG).hexdigest()}"


def last(jobs: MemoryJobs) -> Submission:
    return [*jobs.submissions.values()][-1]


async def made(client: httpx.AsyncClient, jobs: MemoryJobs, **fields: object) -> str:
    body = {"prompt": "harp", "manual_seeds": 3, **fields}
    request_id: str = (await client.post("/generate_music_async", json=body)).json()["request_id"]
    assert (await jobs.wait(request_id, 5)).status == "completed"
    return request_id


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("fields", TASKS)
async def test_every_route_makes_every_task_of_every_source(
    client: httpx.AsyncClient, jobs: MemoryJobs, path: str, fields: dict[str, Any]
) -> None:
    earlier = await made(client, jobs)
    form = {name: str(value) for name, value in fields.items()}
    text = base64.b64encode(SONG).decode()
    answers = [
        await client.post(path, data=form, files={"audio_file": ("a.wav", SONG)}),
        await client.post(path, json=fields | {"audio_base64": text}),
        await client.post(path, json=fields | {"src_audio": NAME}),
        await client.post(path, json=fields | {"ref_audio_input": NAME}),
        await client.post(path, json=fields | {"source_request_id": earlier}),
    ]
    assert {answer.status_code for answer in answers} <= {200, 202}, [answer.text[:200] for answer in answers]
    *uploads, of_job = [*jobs.submissions.values()][1:]
    assert all(isinstance(one.source, Upload) and one.source.content.tobytes() == SONG for one in uploads)
    assert of_job.source == EarlierSong(earlier, 0)
    assert {one.songs[0].task for one in (*uploads, of_job)} == {fields["task"]}


@pytest.mark.parametrize("fields", TASKS)
async def test_the_parameters_of_any_result_make_it_again_without_the_upload(
    client: httpx.AsyncClient, jobs: MemoryJobs, fields: dict[str, Any]
) -> None:
    form = {name: str(value) for name, value in fields.items()}
    first = await client.post("/generate_music", data=form, files={"audio_file": ("a.wav", SONG)})
    submission = last(jobs)
    again = await client.post("/generate_music", json=first.json()["params_json"])
    assert again.status_code == 200, again.text
    assert again.json()["params_json"] == first.json()["params_json"]
    assert last(jobs).songs == submission.songs
    assert isinstance(source := last(jobs).source, Upload)
    assert source.content.tobytes() == SONG


async def test_a_song_of_a_batch_is_a_source_and_brings_its_words(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    earlier = await made(client, jobs, batch_size=2, vocal_language="fr", lyrics="la")
    named = {"source_request_id": earlier, "source_index": 1}
    first = await client.post("/generate_music", json=REPAINT | named)
    assert last(jobs).source == EarlierSong(earlier, 1)
    assert (last(jobs).songs[0].prompt, last(jobs).songs[0].vocal_language) == ("harp", "fr")
    submission = last(jobs)
    await client.post("/generate_music", json=first.json()["params_json"])
    assert (last(jobs).songs, last(jobs).source) == (submission.songs, submission.source)


async def test_a_retake_repeats_an_earlier_song_with_other_noise(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    earlier = await made(client, jobs, audio_duration=12)
    response = await client.post("/generate_music", json={"task": "retake", "source_request_id": earlier})
    (song,) = last(jobs).songs
    assert (song.prompt, song.seed, song.duration_s, last(jobs).source) == ("harp", 3, 12.0, None)
    assert response.json()["outputs"][0]["retake_seed"] == song.retake_seed


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"src_audio": "a.wav", "ref_audio_input": "a.wav"}, "src_audio: comes with ref_audio_input"),
        ({"src_audio": NAME, "source_request_id": "a" * 32}, "source_request_id: comes with src_audio"),
        ({"audio_base64": "AAAA", "src_audio": NAME}, "src_audio: comes with audio_base64"),
        ({"source_index": 1}, "source_index: says which song of a job"),
    ],
)
async def test_a_song_has_one_source(client: httpx.AsyncClient, source: dict[str, Any], words: str) -> None:
    response = await client.post("/generate_music", json=REPAINT | source)
    assert response.status_code == 422
    assert words in response.json()["detail"]


async def problem_with(client: httpx.AsyncClient, **source: object) -> tuple[int, str, str]:
    """Status, code and field of the refusal of this source."""
    response = await client.post("/generate_music", json=REPAINT | source)
    problem = openapi.Problem.model_validate(response.json())
    assert problem.errors is not None
    return response.status_code, problem.code, problem.errors[0].field


async def test_sources_that_are_not_there_are_told_apart(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    for unknown in ("00000000000040008000000000000000", "nope", "../x"):
        assert await problem_with(client, source_request_id=unknown) == (404, "job_not_found", "source_request_id")
    missing = f"upload:{'0' * 64}"
    assert await problem_with(client, src_audio=missing) == (404, "source_not_found", "src_audio")
    earlier = await made(client, jobs)
    index = await problem_with(client, source_request_id=earlier, source_index=1)
    assert index == (422, "invalid_request", "source_index")
    jobs.views[earlier] = replace(jobs.views[earlier], outcome="expired")
    assert await problem_with(client, source_request_id=earlier) == (410, "source_gone", "source_request_id")
    jobs.fail_with = ("numerical", "NaN")
    body = {"prompt": "harp"}
    failed = (await client.post("/generate_music_async", json=body)).json()["request_id"]
    await jobs.wait(failed, 5)
    assert await problem_with(client, source_request_id=failed) == (409, "source_failed", "source_request_id")
    jobs.hold()
    waiting = (await client.post("/generate_music_async", json=body)).json()["request_id"]
    assert await problem_with(client, source_request_id=waiting) == (409, "source_not_completed", "source_request_id")
    assert len(jobs.submissions) == 3


async def test_a_file_of_the_operator_is_named_as_it_was(
    client: httpx.AsyncClient, jobs: MemoryJobs, audio_root: Path
) -> None:
    (audio_root / "theme.wav").write_bytes(SONG)
    response = await client.post("/generate_music", json=REPAINT | {"ref_audio_input": "theme.wav"})
    params = response.json()["params_json"]
    assert (params["src_audio"], params["ref_audio_input"]) == ("theme.wav", None)


async def test_text2music_is_not_sent_audio(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    response = await client.post("/generate_music", files={"audio_file": ("a.wav", SONG)})
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "audio_file"
    assert not jobs.views


async def test_a_batch_over_the_configured_limit_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/generate_music", json={"batch_size": 9})
    assert response.status_code == 422
    assert "9 is over the limit of 8" in response.json()["detail"]
