"""Status, result, queue and cancellation."""

import base64
from dataclasses import replace

import httpx
import pytest

from serve_app import openapi
from tests.serve_app.memory import MemoryJobs

UNKNOWN_IDS = [
    "00000000000040008000000000000000",
    "00000000-0000-4000-8000-000000000000",
    "nope",
    "..%2f..%2fetc%2fpasswd",
    "a%0d%0ab",
    "%F0%9F%8E%B5",
    "x" * 5_000,
    "' or 1=1 --",
]


async def queue(client: httpx.AsyncClient, **fields: object) -> str:
    body = (await client.post("/generate_music_async", json={"manual_seeds": 3, **fields})).json()
    request_id: str = body["request_id"]
    return request_id


async def made(client: httpx.AsyncClient, jobs: MemoryJobs, **fields: object) -> str:
    request_id = await queue(client, **fields)
    assert (await jobs.wait(request_id, 5)).status == "completed"
    return request_id


async def test_status_follows_a_job_to_its_result(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    jobs.hold()
    request_id = await queue(client)
    pending = (await client.get(f"/status/{request_id}")).json()
    openapi.Job.model_validate(pending)
    assert (pending["status"], pending["position"], pending["started_at"]) == ("pending", 0, None)
    assert "result" not in pending
    jobs.release()
    await jobs.wait(request_id, 5)
    done = (await client.get(f"/status/{request_id}")).json()
    openapi.Job.model_validate(done)
    assert (done["status"], done["outcome"]) == ("completed", "completed")
    assert done["created_at"] <= done["started_at"] <= done["completed_at"]
    assert done["progress"] == {"stage": "diffusion", "step": 1, "steps": 60}
    assert done["result"]["success"] is True
    assert done["result"]["audio_path"].startswith("./outputs/")
    assert done["result"]["params_json"]["manual_seeds"] == 3


@pytest.mark.parametrize("request_id", UNKNOWN_IDS)
@pytest.mark.parametrize(("method", "path"), [("GET", "status"), ("GET", "result"), ("DELETE", "request")])
async def test_unknown_and_malformed_ids_are_the_same_404(
    client: httpx.AsyncClient, method: str, path: str, request_id: str
) -> None:
    response = await client.request(method, f"/{path}/{request_id}")
    body = response.json()
    openapi.Problem.model_validate(body)
    assert (response.status_code, body["status"]) == (404, 404)
    assert "passwd" not in response.text


async def test_the_404_of_a_job_does_not_tell_malformed_from_unknown(client: httpx.AsyncClient) -> None:
    bodies = [(await client.get(f"/status/{one}")).json() for one in ("nope", UNKNOWN_IDS[0], UNKNOWN_IDS[1])]
    assert len({(body["code"], body["detail"]) for body in bodies}) == 1


async def test_a_result_before_the_end_is_400_and_says_when_to_come_back(
    client: httpx.AsyncClient, jobs: MemoryJobs
) -> None:
    jobs.hold()
    response = await client.get(f"/result/{await queue(client)}")
    assert response.status_code == 400
    assert response.json()["code"] == "job_not_ended"
    assert int(response.headers["retry-after"]) >= 1


async def test_a_result_is_the_audio_with_its_headers(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    request_id = await made(client, jobs, format="flac")
    response = await client.get(f"/result/{request_id}")
    assert response.status_code == 200
    assert response.content == jobs.audio[request_id][0].tobytes()
    headers = response.headers
    assert headers["content-type"] == "audio/flac"
    assert headers["content-length"] == str(len(response.content))
    assert headers["accept-ranges"] == "bytes"
    assert (headers["x-request-id"], headers["x-seed"], headers["x-model"]) == (request_id, "3", "tiny")
    assert headers["content-disposition"].startswith('attachment; filename="generated_music_')


async def test_head_answers_the_headers_alone(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    request_id = await made(client, jobs)
    response = await client.head(f"/result/{request_id}")
    assert response.status_code == 200
    assert response.content == b""
    assert response.headers["content-length"] == str(jobs.audio[request_id][0].size)


@pytest.mark.parametrize(
    ("accept", "query", "kind"),
    [
        ("*/*", "", "audio/wav"),
        ("application/json", "", "application/json"),
        ("application/json, text/plain, */*", "", "audio/wav"),  # what axios sends unasked
        ("application/json, */*;q=0.1", "", "application/json"),
        ("audio/*, application/json;q=0.9", "", "audio/wav"),
        ("*/*", "?format=json", "application/json"),
        ("application/json", "?format=audio", "audio/wav"),
    ],
)
async def test_a_result_is_json_only_when_asked(
    client: httpx.AsyncClient, jobs: MemoryJobs, accept: str, query: str, kind: str
) -> None:
    response = await client.get(f"/result/{await made(client, jobs)}{query}", headers={"Accept": accept})
    assert response.headers["content-type"] == kind
    if kind == "application/json":
        openapi.Generated.model_validate(response.json())


async def test_another_result_format_is_refused(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    assert (await client.get(f"/result/{await made(client, jobs)}?format=xml")).status_code == 422


async def test_ranges_of_a_result_are_served(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    request_id = await made(client, jobs)
    audio = jobs.audio[request_id][0].tobytes()
    size = len(audio)
    for asked, start, end in (
        ("bytes=0-99", 0, 100),
        ("bytes=100-", 100, size),
        ("bytes=-50", size - 50, size),
        (f"bytes=-{size * 2}", 0, size),
        (f"bytes=10-{size * 2}", 10, size),
        (f"bytes={size - 1}-{size - 1}", size - 1, size),
    ):
        response = await client.get(f"/result/{request_id}", headers={"Range": asked})
        assert response.status_code == 206
        assert response.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
        assert response.content == audio[start:end]


@pytest.mark.parametrize("asked", ["bytes=5-2", "bytes=a-b", "items=0-5", "bytes=0-5,10-20", "bytes=-", ""])
async def test_a_range_that_is_none_is_answered_with_the_whole(
    client: httpx.AsyncClient, jobs: MemoryJobs, asked: str
) -> None:
    request_id = await made(client, jobs)
    response = await client.get(f"/result/{request_id}", headers={"Range": asked})
    assert response.status_code == 200
    assert len(response.content) == jobs.audio[request_id][0].size


@pytest.mark.parametrize("asked", ["bytes=999999999-", "bytes=-0"])
async def test_a_range_behind_the_end_is_416(client: httpx.AsyncClient, jobs: MemoryJobs, asked: str) -> None:
    request_id = await made(client, jobs)
    response = await client.get(f"/result/{request_id}", headers={"Range": asked})
    assert response.status_code == 416
    assert response.headers["content-range"] == f"bytes */{jobs.audio[request_id][0].size}"
    openapi.Problem.model_validate(response.json())


async def test_a_range_of_another_version_is_answered_with_the_whole(
    client: httpx.AsyncClient, jobs: MemoryJobs
) -> None:
    url = f"/result/{await made(client, jobs)}"
    tag = (await client.get(url)).headers["etag"]
    assert (await client.get(url, headers={"Range": "bytes=0-9", "If-Range": tag})).status_code == 206
    assert (await client.get(url, headers={"Range": "bytes=0-9", "If-Range": '"other"'})).status_code == 200


@pytest.mark.parametrize("route", ["result", "stream"])
async def test_the_extension_of_the_file_may_follow_the_id(
    client: httpx.AsyncClient, jobs: MemoryJobs, route: str
) -> None:
    request_id = await made(client, jobs, format="mp3")
    assert (await client.get(f"/{route}/{request_id}.mp3")).content == jobs.audio[request_id][0].tobytes()
    assert (await client.head(f"/{route}/{request_id}.MP3")).status_code == 200
    other = await client.get(f"/{route}/{request_id}.wav")
    assert (other.status_code, other.json()["detail"]) == (404, "the song is a .mp3 file")
    for wrong in (f"{request_id}.", f"{request_id}.mp3.mp3", f".{request_id}", "nope.mp3"):
        assert (await client.get(f"/{route}/{wrong}")).status_code == 404


@pytest.mark.parametrize(("known", "status"), [("{}", 304), ("W/{}", 304), ('"x", {}', 304), ("*", 304), ('"x"', 200)])
async def test_a_song_that_the_client_has_is_not_sent_again(
    client: httpx.AsyncClient, jobs: MemoryJobs, known: str, status: int
) -> None:
    request_id = await made(client, jobs)
    tag = (await client.get(f"/result/{request_id}")).headers["etag"]
    headers = {"If-None-Match": known.format(tag), "Range": "bytes=0-1"}
    response = await client.get(f"/result/{request_id}", headers=headers)
    assert response.status_code == (206 if status == 200 else status)
    assert len(response.content) == (2 if status == 200 else 0)


async def test_the_json_of_a_result_carries_the_song(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    request_id = await made(client, jobs, format="flac")
    response = await client.get(f"/result/{request_id}?format=json")
    body = response.json()
    openapi.Generated.model_validate(body)
    assert base64.b64decode(body["audio"], validate=True) == jobs.audio[request_id][0].tobytes()
    assert int(response.headers["content-length"]) == len(response.content)


async def test_cancelling_ends_a_job_as_failed_and_twice_is_fine(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    jobs.hold()
    request_id = await queue(client)
    for _ in range(2):
        response = await client.delete(f"/request/{request_id}")
        openapi.Cancelled.model_validate(response.json())
        assert response.status_code == 200
        assert response.json()["outcome"] == "cancelled"
    status = (await client.get(f"/status/{request_id}")).json()
    assert (status["status"], status["error"], status["outcome"]) == ("failed", "Cancelled by user", "cancelled")
    result = await client.get(f"/result/{request_id}")
    assert result.status_code == 409
    assert "Cancelled by user" in result.json()["error_message"]


async def test_a_completed_job_cannot_be_cancelled(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    response = await client.delete(f"/request/{await made(client, jobs)}")
    assert response.status_code == 409
    assert response.json()["code"] == "job_ended"


async def test_the_queue_counts_every_state(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    await made(client, jobs)
    jobs.hold()
    await queue(client)
    body = (await client.get("/queue/status")).json()
    openapi.Queue.model_validate(body)
    assert body == {
        "queue_size": 1,
        "status_counts": {"pending": 1, "processing": 0, "completed": 1, "failed": 0},
        "total_requests": 2,
        "priority_counts": {"5": 1},
        "expected_wait_s": 2.5,
        "replicas": 1,
    }


async def test_an_expired_result_is_gone_but_its_job_is_still_known(
    client: httpx.AsyncClient, jobs: MemoryJobs
) -> None:
    request_id = await made(client, jobs)
    expired = replace(jobs.views[request_id], outcome="expired", results=(), error="the result is no longer kept")
    jobs.views[request_id] = expired
    result = await client.get(f"/result/{request_id}")
    assert (result.status_code, result.json()["code"]) == (410, "job_expired")
    status = (await client.get(f"/status/{request_id}")).json()
    openapi.Job.model_validate(status)
    assert (status["status"], status["outcome"]) == ("completed", "expired")
    assert "result" not in status
