"""The routes that make music from words, as the users' clients call them."""

import asyncio
import io
import re
import time
from typing import Any

import httpx
import pytest
import soundfile

from serve_app import openapi
from serve_app.settings import CallbackSettings, JobSettings, Limits, Settings
from tests.serve_app.conftest import Connect
from tests.serve_app.memory import MemoryJobs

SHORT = {"prompt": "jazz piano, smooth", "audio_duration": 10.0, "infer_step": 20, "manual_seeds": "7"}

VOLATILE = ("audio_path", "timecosts")  # what a song's parameters say of one making of it

# The complete body of the users' own documents, as it stands there.
EVERY_FIELD: dict[str, Any] = {
    "format": "wav",
    "audio_duration": 30.0,
    "prompt": "acoustic guitar, calm, peaceful",
    "lyrics": "",
    "infer_step": 60,
    "guidance_scale": 15.0,
    "scheduler_type": "euler",
    "cfg_type": "apg",
    "omega_scale": 10.0,
    "manual_seeds": None,
    "guidance_interval": 0.5,
    "guidance_interval_decay": 0.0,
    "min_guidance_scale": 3.0,
    "use_erg_tag": True,
    "use_erg_lyric": False,
    "use_erg_diffusion": True,
    "oss_steps": None,
    "guidance_scale_text": 0.0,
    "guidance_scale_lyric": 0.0,
    "audio2audio_enable": False,
    "ref_audio_strength": 0.5,
    "ref_audio_input": None,
    "lora_name_or_path": "none",
    "lora_weight": 1.0,
}


def samples_of(response: httpx.Response) -> tuple[tuple[int, ...], int]:
    data, rate = soundfile.read(io.BytesIO(response.content))
    return data.shape, rate


async def test_generate_music_waits_and_answers_both_kinds_of_client(client: httpx.AsyncClient) -> None:
    response = await client.post("/generate_music", json=EVERY_FIELD)
    body = response.json()
    openapi.Generated.model_validate(body)
    assert response.status_code == 200
    assert body["success"] is True
    assert body["audio_path"].startswith("./outputs/output_")
    assert body["status"] == "completed"
    expected = EVERY_FIELD | {"manual_seeds": body["seed"], "oss_steps": []}
    assert body["params_json"].items() >= expected.items()
    assert (body["content_type"], body["audio_size_bytes"]) == ("audio/wav", body["audio_bytes"])
    assert body["ignored_fields"] == []
    assert (await client.get(f"/result/{body['request_id']}")).content[:4] == b"RIFF"


async def test_the_answered_parameters_make_the_same_music_again(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    first = (await client.post("/generate_music", json={"audio_duration": -1})).json()
    again = (await client.post("/generate_music", json=first["params_json"])).json()
    assert jobs.submissions[first["request_id"]].songs == jobs.submissions[again["request_id"]].songs
    assert again["params_json"] == first["params_json"] | {name: again["params_json"][name] for name in VOLATILE}
    assert again["ignored_fields"] == ["audio_path", "timecosts"]


@pytest.mark.parametrize(
    ("audio_format", "media_type"),
    [
        ("wav", "audio/wav"),
        ("wav32", "audio/wav"),
        ("mp3", "audio/mpeg"),
        ("ogg", "audio/ogg"),
        ("flac", "audio/flac"),
        ("opus", "audio/ogg; codecs=opus"),
    ],
)
async def test_direct_answers_the_audio_with_its_headers(
    client: httpx.AsyncClient, jobs: MemoryJobs, audio_format: str, media_type: str
) -> None:
    response = await client.post("/generate_music_direct", json=SHORT | {"format": audio_format})
    assert response.status_code == 200
    assert response.headers["content-type"] == media_type
    assert int(response.headers["content-length"]) == len(response.content)
    found = re.fullmatch(
        rf'attachment; filename="generated_music_(\d+)\.{audio_format.removesuffix("32")}"',
        response.headers["content-disposition"],
    )
    assert found is not None
    assert abs(int(found[1]) - time.time()) < 60
    assert response.headers["x-seed"] == "7"
    assert response.headers["x-model"] == "tiny"
    ((samples, channels), rate) = samples_of(response)
    assert (channels, rate) == (2, 48_000)
    assert samples > 0
    (submission,) = jobs.submissions.values()
    assert response.headers["x-request-id"] == submission.request_id
    assert not submission.save_file


async def test_async_answers_at_once_as_documented(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    jobs.hold()
    response = await client.post("/generate_music_async", json=SHORT | {"format": "mp3"})
    body = response.json()
    openapi.Accepted.model_validate(body)
    assert response.status_code == 200
    assert body["status"] == "queued"
    assert body["message"] == "Request has been queued for processing"
    assert response.headers["location"] == f"/status/{body['request_id']}"
    assert jobs.submissions[body["request_id"]].save_file
    jobs.release()
    for _ in range(100):
        status = (await client.get(f"/status/{body['request_id']}")).json()
        if status["status"] == "completed":
            break
        await asyncio.sleep(0.02)
    result = await client.get(f"/result/{body['request_id']}")
    assert result.headers["content-type"] == "audio/mpeg"


@pytest.mark.parametrize("path", ["/generate_music", "/generate_music_async"])
async def test_prefer_respond_async_is_honoured(client: httpx.AsyncClient, jobs: MemoryJobs, path: str) -> None:
    jobs.hold()
    response = await client.post(path, json=SHORT, headers={"Prefer": "wait=5, respond-async"})
    assert response.status_code == 202
    assert response.headers["preference-applied"] == "respond-async"
    assert int(response.headers["retry-after"]) >= 1


async def test_a_song_that_takes_too_long_for_json_is_said_to_be_processing_and_goes_on(
    connect: Connect, settings: Settings, jobs: MemoryJobs
) -> None:
    client = await connect(settings.model_copy(update={"jobs": JobSettings(sync_wait_s=0.05)}))
    jobs.hold()
    response = await client.post("/generate_music", json=SHORT)
    body = response.json()
    openapi.Accepted.model_validate(body)
    assert (response.status_code, body["status"]) == (200, "processing")
    assert response.headers["location"] == f"/status/{body['request_id']}"
    jobs.release()
    await jobs.wait(body["request_id"], 5)
    assert (await client.get(f"/result/{body['request_id']}")).status_code == 200


@pytest.mark.parametrize("path", ["/generate_music_direct", "/generate_music_form", "/generate_music"])
async def test_a_route_that_promises_audio_waits_until_there_is_some(
    connect: Connect, settings: Settings, jobs: MemoryJobs, path: str
) -> None:
    client = await connect(settings.model_copy(update={"jobs": JobSettings(sync_wait_s=0.05)}))
    jobs.hold()
    waiting = asyncio.create_task(client.post(path, data={"infer_step": "20"}, headers={"Accept": "audio/*"}))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    jobs.release()
    response = await waiting
    assert (response.status_code, response.headers["content-type"]) == (200, "audio/wav")
    (request_id,) = jobs.views
    assert response.headers["x-request-id"] == request_id
    assert response.content == (await client.get(f"/result/{request_id}")).content


async def test_all_songs_of_a_batch_are_waited_for_as_well(
    connect: Connect, settings: Settings, jobs: MemoryJobs
) -> None:
    client = await connect(settings.model_copy(update={"jobs": JobSettings(sync_wait_s=0.05)}))
    jobs.hold()
    asked = SHORT | {"batch_size": 2}
    waiting = asyncio.create_task(client.post("/generate_music_direct?format=zip", json=asked))
    await asyncio.sleep(0.3)
    jobs.release()
    response = await waiting
    assert (response.status_code, response.headers["content-type"]) == (200, "application/zip")


async def test_a_song_that_fails_after_the_usual_wait_is_a_problem(
    connect: Connect, settings: Settings, jobs: MemoryJobs
) -> None:
    client = await connect(settings.model_copy(update={"jobs": JobSettings(sync_wait_s=0.05)}))
    jobs.hold()
    jobs.fail_with = ("numerical", "it went wrong")
    waiting = asyncio.create_task(client.post("/generate_music_direct", json=SHORT))
    await asyncio.sleep(0.3)
    jobs.release()
    response = await waiting
    assert (response.status_code, response.json()["code"]) == (500, "numerical")
    assert response.json()["request_id"] in jobs.views


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        ("application/json, audio/*;q=0.5", "application/json"),
        ("audio/*", "audio/wav"),
        ("audio/wav, */*;q=0.1", "audio/wav"),
        ("text/html,*/*;q=0.8", "application/json"),
        ("application/json, text/plain, */*", "application/json"),
    ],
)
async def test_accept_chooses_between_json_and_audio(client: httpx.AsyncClient, accept: str, kind: str) -> None:
    response = await client.post("/generate_music", json=SHORT, headers={"Accept": accept})
    assert response.headers["content-type"] == kind


async def test_return_file_data_keeps_answering_json(client: httpx.AsyncClient) -> None:
    response = await client.post("/generate_music", json=SHORT | {"return_file_data": True})
    assert response.json()["request_id"]


async def test_the_form_takes_genre_and_its_own_defaults(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    response = await client.post("/generate_music_form", data={"genre": "pop ballad", "lyrics": "[verse]\nla"})
    assert response.status_code == 200
    assert response.headers["content-type"] == "audio/wav"
    (submission,) = jobs.submissions.values()
    assert submission.songs[0].prompt == "pop ballad"
    assert submission.songs[0].steps == 27
    assert 30 <= submission.songs[0].duration_s <= 240
    assert submission.request_json["prompt"] == "pop ballad"


async def test_a_form_may_fill_in_every_field_as_text(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    form = {name: "" if value is None else str(value) for name, value in EVERY_FIELD.items()}
    response = await client.post("/generate_music_form", data=form)
    assert response.status_code == 200, response.text
    (submission,) = jobs.submissions.values()
    assert submission.songs[0].steps == 60
    assert submission.songs[0].lyrics == ""


async def test_genre_beside_prompt_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/generate_music_form", data={"genre": "pop", "prompt": "rock"})
    assert response.status_code == 422


@pytest.mark.parametrize("encode", ["multipart", "form"])
async def test_a_json_route_takes_the_same_fields_from_a_form(
    client: httpx.AsyncClient, jobs: MemoryJobs, encode: str
) -> None:
    fields = {name: str(value) for name, value in SHORT.items()}
    if encode == "form":
        response = await client.post("/generate_music", data=fields)
    else:
        response = await client.post("/generate_music", files={name: (None, value) for name, value in fields.items()})
    assert response.status_code == 200, response.text
    (submission,) = jobs.submissions.values()
    assert (submission.songs[0].prompt, submission.songs[0].seed) == ("jazz piano, smooth", 7)


async def test_a_full_queue_is_429_and_says_when_to_come_back(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    jobs.hold()
    jobs.queue_limit = 1
    assert (await client.post("/generate_music_async", json=SHORT)).status_code == 200
    response = await client.post("/generate_music_async", json=SHORT)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "4"
    assert response.json()["code"] == "queue_full"
    assert len(jobs.views) == 1


@pytest.mark.parametrize(
    ("code", "status"), [("numerical", 500), ("unreadable_audio", 422), ("audio_too_large", 413), ("timeout", 504)]
)
async def test_a_failed_song_is_answered_with_its_code(
    client: httpx.AsyncClient, jobs: MemoryJobs, code: str, status: int
) -> None:
    jobs.fail_with = (code, "it went\nwrong")
    response = await client.post("/generate_music_direct", json=SHORT)
    assert response.status_code == status
    body = response.json()
    openapi.Problem.model_validate(body)
    assert body["code"] == code
    assert body["detail"] == "no music was made: it went\\nwrong"


async def test_a_client_that_leaves_cancels_its_song(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    jobs.hold()
    request = asyncio.create_task(client.post("/generate_music_direct", json=SHORT))
    await jobs.accepted.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    (request_id,) = jobs.views
    view = await jobs.wait(request_id, 2)
    assert (view.outcome, view.error) == ("cancelled", "The client disconnected")


@pytest.mark.parametrize("path", ["/generate_music", "/generate_music_form", "/generate"])
async def test_a_song_that_was_no_direct_answer_is_made_although_its_client_left(
    client: httpx.AsyncClient, jobs: MemoryJobs, path: str
) -> None:
    jobs.hold()
    request = asyncio.create_task(client.post(path, data={"infer_step": "20"}))
    await jobs.accepted.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    jobs.release()
    (request_id,) = jobs.views
    assert (await jobs.wait(request_id, 2)).outcome == "completed"


async def test_a_queued_song_outlives_its_client(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    body = (await client.post("/generate_music_async", json=SHORT)).json()
    await client.aclose()
    assert (await jobs.wait(body["request_id"], 5)).status == "completed"


async def test_a_lost_job_manager_is_503_and_accepts_nothing(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    jobs.reachable = False
    response = await client.post("/generate_music", json=SHORT)
    assert response.status_code == 503
    assert response.headers["retry-after"]
    assert response.json()["code"] == "service_unavailable"


async def test_a_job_manager_lost_after_acceptance_does_not_lose_the_job(
    client: httpx.AsyncClient, jobs: MemoryJobs
) -> None:
    jobs.waits = False
    response = await client.post("/generate_music", json=SHORT)
    assert (response.status_code, response.json()["status"]) == (200, "processing")
    assert response.json()["request_id"] in jobs.views


async def test_audio_that_cannot_be_waited_for_any_more_is_504_with_the_id_of_its_job(
    client: httpx.AsyncClient, jobs: MemoryJobs
) -> None:
    jobs.hold()
    waiting = asyncio.create_task(client.post("/generate_music_direct?format=zip", json=SHORT))
    await jobs.accepted.wait()
    jobs.waits = jobs.reachable = False
    jobs.release()
    response = await waiting
    openapi.Problem.model_validate(response.json())
    assert (response.status_code, response.json()["code"]) == (504, "still_processing")
    assert [*jobs.views] == [response.json()["request_id"]]


async def test_one_hundred_submissions_at_once_are_all_accounted_for(
    client: httpx.AsyncClient, jobs: MemoryJobs
) -> None:
    jobs.hold()
    jobs.queue_limit = 40
    answers = await asyncio.gather(*[client.post("/generate_music_async", json=SHORT) for _ in range(100)])
    accepted = [answer for answer in answers if answer.status_code == 200]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert {answer.json()["request_id"] for answer in accepted} == set(jobs.views)


async def test_behind_the_proxy_the_job_has_the_id_that_the_proxy_answers(
    connect: Connect, settings: Settings, jobs: MemoryJobs
) -> None:
    client = await connect(settings, behind_proxy=True)
    given = "0b4a3d5e-0000-4000-8000-00000000abcd"
    response = await client.post("/generate_music_direct", json=SHORT, headers={"X-Request-ID": given})
    assert [*jobs.views] == [given]
    assert "x-request-id" not in response.headers  # the proxy adds it
    repeated = await client.post("/generate_music_direct", json=SHORT, headers={"X-Request-ID": given})
    assert len(jobs.views) == 2
    assert repeated.headers["x-request-id"] in jobs.views


async def test_an_id_of_another_form_is_not_taken_over(connect: Connect, settings: Settings, jobs: MemoryJobs) -> None:
    client = await connect(settings, behind_proxy=True)
    headers = {"X-Request-ID": "'; drop table jobs; --"}
    response = await client.post("/generate_music_direct", json=SHORT, headers=headers)
    assert [*jobs.views] == [response.headers["x-request-id"]]


async def test_a_callback_is_asked_for_on_any_route_and_is_no_part_of_the_request_made_again(
    client: httpx.AsyncClient, jobs: MemoryJobs
) -> None:
    asked = {"callback_url": "https://hooks.example.org/done?job=1", "audio_duration": 2.0}
    for path in ("/generate_music_async", "/generate_music_direct"):
        assert (await client.post(path, data=asked)).status_code == 200
    assert [one.callback_url for one in jobs.submissions.values()] == [asked["callback_url"]] * 2
    assert all("callback_url" not in one.request_json for one in jobs.submissions.values())


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("https://elsewhere.org/", "goes to a host that the operator has not allowed (callbacks.hosts)"),
        ("ftp://hooks.example.org/", "is no http or https URL"),
        ("http://me:secret@hooks.example.org/", "must not carry a user name or a password"),
    ],
)
async def test_a_callback_that_may_not_go_there_is_refused_by_its_field(
    client: httpx.AsyncClient, jobs: MemoryJobs, url: str, problem: str
) -> None:
    refused = await client.post("/generate_music_async", json={"callback_url": url})
    assert refused.status_code == 422
    assert refused.json()["errors"] == [{"field": "callback_url", "problem": problem}]
    assert jobs.submissions == {}


async def test_without_hosts_a_callback_is_refused(connect: Connect, settings: Settings) -> None:
    client = await connect(settings.model_copy(update={"callbacks": CallbackSettings()}))
    refused = await client.post("/generate_music_async", json={"callback_url": "https://example.org/"})
    assert refused.status_code == 422
    assert "callbacks are off" in refused.json()["detail"]


async def test_requests_that_wait_are_bounded_and_what_is_queued_or_asked_is_answered_all_the_same(
    connect: Connect, settings: Settings, jobs: MemoryJobs
) -> None:
    client = await connect(settings.model_copy(update={"limits": Limits(waiting=2)}))
    jobs.hold()
    paths = ("/generate_music", "/generate_music_direct")
    waiting = [asyncio.create_task(client.post(path, json=SHORT)) for path in paths]
    await asyncio.sleep(0.1)
    for path, more in (("/generate_music", {}), ("/generate_music_direct", {"stream": True}), ("/generate", {})):
        refused = await client.post(path, json=SHORT | more)
        assert (refused.status_code, refused.json()["code"]) == (503, "too_many_waiting")
        assert refused.headers["retry-after"]
    assert len(jobs.views) == 2
    assert (await client.post("/generate_music_async", json=SHORT)).status_code == 200
    assert (await client.get("/health")).status_code == 200
    jobs.release()
    assert [answer.status_code for answer in await asyncio.gather(*waiting)] == [200, 200]
    assert (await client.post("/generate_music", json=SHORT)).status_code == 200
