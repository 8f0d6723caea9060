"""The Idempotency-Key header."""

import asyncio
from typing import Any

import httpx
import pytest

from tests.serve_app.memory import MemoryJobs

SHORT = {"audio_duration": 2.0, "infer_step": 2}


async def post(client: httpx.AsyncClient, key: str | None, path: str = "/generate_music_async", **body: Any) -> Any:
    headers = {} if key is None else {"Idempotency-Key": key}
    return await client.post(path, json=SHORT | body, headers=headers)


async def test_the_same_key_and_request_are_one_job(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    first, again = [await post(client, "order-7") for _ in range(2)]
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json()["request_id"] == again.json()["request_id"]
    other = await post(client, "order-8")
    assert other.json()["request_id"] != first.json()["request_id"]
    assert len(jobs.views) == 2


async def test_a_route_that_waits_answers_the_job_that_is_there(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    first, again = [await post(client, "order-7", "/generate_music_direct") for _ in range(2)]
    assert first.content == again.content
    assert first.headers["x-request-id"] == again.headers["x-request-id"]


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "jazz"},
        {"callback_url": "https://hooks.example.org/other"},
        {"infer_step": 3},
        {"path": "/generate_music"},
        {"manual_seeds": 4},
    ],
)
async def test_the_same_key_for_another_request_is_refused(client: httpx.AsyncClient, change: dict[str, Any]) -> None:
    await post(client, "order-7")
    refused = await post(client, "order-7", **change)
    assert (refused.status_code, refused.json()["code"]) == (422, "idempotency_key_reused")


async def test_the_same_key_for_another_upload_is_refused(client: httpx.AsyncClient, wav_file: bytes) -> None:
    def send(audio: bytes) -> Any:
        return client.post(
            "/generate_music_with_audio", files={"audio_file": audio}, data={}, headers={"Idempotency-Key": "order-9"}
        )

    first, again = await send(wav_file), await send(wav_file)
    assert first.json()["request_id"] == again.json()["request_id"]
    other = bytearray(wav_file)
    other[-1] ^= 1
    refused = await send(bytes(other))
    assert (refused.status_code, refused.json()["code"]) == (422, "idempotency_key_reused")


async def test_without_a_key_every_request_is_a_job_of_its_own(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    for _ in range(2):
        await post(client, None)
    assert len(jobs.views) == 2


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "schl\u00fcssel"])
async def test_what_is_no_key_is_refused(client: httpx.AsyncClient, jobs: MemoryJobs, key: str) -> None:
    response = await client.post(
        "/generate_music_async", json=SHORT, headers={"Idempotency-Key": key.encode("latin-1")}
    )
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "Idempotency-Key"
    assert not jobs.views


async def test_a_client_that_leaves_may_come_back_for_its_job(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    jobs.hold()
    leaving = asyncio.create_task(post(client, "order-7", "/generate_music_direct"))
    await jobs.accepted.wait()
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    [view] = jobs.views.values()
    assert not view.ended
    jobs.release()
    back = await post(client, "order-7", "/generate_music_direct")
    assert (back.status_code, back.headers["x-request-id"]) == (200, view.request_id)
