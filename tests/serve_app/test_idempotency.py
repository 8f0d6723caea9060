"""The Idempotency-Key header."""

import asyncio
import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.messages import ByteArray, LoraInfo, SourceGoneError, SourceSong
from serve_app.settings import CallbackSettings, Limits, Settings
from tests.serve_app.conftest import Connect
from tests.serve_app.memory import MemoryJobs, wav

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


class ForgetfulJobs(MemoryJobs):
    """A JobManager that keeps no earlier song and no upload any more."""

    async def source_song(self, request_id: str, index: int) -> SourceSong:
        return replace(await super().source_song(request_id, index), is_kept=not self.is_forgetful)

    async def upload(self, digest: str) -> ByteArray:
        if self.is_forgetful:
            raise SourceGoneError(digest)
        return await super().upload(digest)

    is_forgetful = False


async def made_job(client: httpx.AsyncClient) -> str:
    """The id of a job that has completed."""
    made = await post(client, None, "/generate_music")
    assert made.status_code == 200
    request_id: str = made.json()["request_id"]
    return request_id


async def test_a_resend_is_answered_after_the_earlier_song_it_begins_from_has_expired(
    connect: Connect, settings: Settings
) -> None:
    jobs = ForgetfulJobs()
    client = await connect(settings, jobs=jobs)
    body = {"task": "audio2audio", "source_request_id": await made_job(client)}
    first = await post(client, "order-7", **body)
    jobs.is_forgetful = True
    assert (await post(client, "order-8", **body)).status_code == 410
    again = await post(client, "order-7", **body)
    assert (again.status_code, again.json()["request_id"]) == (200, first.json()["request_id"])
    refused = await post(client, "order-7", **body | {"source_index": 1})
    assert (refused.status_code, refused.json()["code"]) == (422, "idempotency_key_reused")


async def test_a_resend_is_answered_after_the_job_it_begins_from_is_forgotten(
    client: httpx.AsyncClient, jobs: MemoryJobs
) -> None:
    body = {"task": "retake", "source_request_id": await made_job(client)}
    first = await post(client, "order-7", **body)
    del jobs.views[body["source_request_id"]]
    assert (await post(client, "order-8", **body)).status_code == 404
    again = await post(client, "order-7", **body)
    assert (again.status_code, again.json()["request_id"]) == (200, first.json()["request_id"])


async def test_a_resend_is_answered_after_the_upload_that_it_names_is_gone(
    connect: Connect, settings: Settings, wav_file: bytes
) -> None:
    jobs = ForgetfulJobs()
    client = await connect(settings, jobs=jobs)
    await client.post("/generate_music_with_audio", files={"audio_file": wav_file})
    body = {"task": "audio2audio", "ref_audio_input": f"upload:{hashlib.sha256(wav_file).hexdigest()}"}
    first = await post(client, "order-7", **body)
    jobs.is_forgetful = True
    assert (await post(client, "order-8", **body)).status_code == 404
    again = await post(client, "order-7", **body)
    assert (again.status_code, again.json()["request_id"]) == (200, first.json()["request_id"])


@pytest.mark.parametrize("change", ["removed", "replaced"])
async def test_a_resend_is_answered_after_the_file_that_it_names_has_changed(
    client: httpx.AsyncClient, audio_root: Path, wav_file: bytes, change: str
) -> None:
    file = audio_root / "piano.wav"
    file.write_bytes(wav_file)
    body = {"task": "audio2audio", "ref_audio_input": "piano.wav"}
    first = await post(client, "order-7", **body)
    if change == "removed":
        file.unlink()
    else:
        file.write_bytes(wav(0.4))
    again = await post(client, "order-7", **body)
    assert (again.status_code, again.json()["request_id"]) == (200, first.json()["request_id"])
    refused = await post(client, "order-7", **body | {"ref_audio_input": "drums.wav"})
    assert (refused.status_code, refused.json()["code"]) == (422, "idempotency_key_reused")


@pytest.mark.parametrize("source", ["file", "upload", "job"])
async def test_a_job_that_an_earlier_version_kept_is_still_known(
    client: httpx.AsyncClient, jobs: MemoryJobs, audio_root: Path, wav_file: bytes, source: str
) -> None:
    (audio_root / "piano.wav").write_bytes(wav_file)
    content = hashlib.sha256(wav_file).hexdigest()
    await client.post("/generate_music_with_audio", files={"audio_file": wav_file})
    request_id = await made_job(client)
    body, name = {
        "file": ({"ref_audio_input": "piano.wav"}, content),
        "upload": ({"ref_audio_input": f"upload:{content}"}, content),
        "job": ({"source_request_id": request_id}, f"{request_id}/0"),
    }[source]
    first = (await post(client, "order-7", task="audio2audio", **body)).json()["request_id"]
    words = ["/generate_music_async", SHORT | {"task": "audio2audio"} | body, name, None]
    digest = hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()
    jobs.submissions[first] = replace(jobs.submissions[first], request_digest=digest)
    again = await post(client, "order-7", task="audio2audio", **body)
    assert (again.status_code, again.json()["request_id"]) == (200, first)


@pytest.mark.parametrize("way", ["multipart", "base64"])
async def test_a_resend_is_answered_after_its_upload_would_no_longer_be_taken(
    connect: Connect, settings: Settings, jobs: MemoryJobs, wav_file: bytes, way: str
) -> None:
    def send(client: httpx.AsyncClient, key: str) -> Any:
        headers = {"Idempotency-Key": key}
        if way == "multipart":
            return client.post("/generate_music_with_audio", files={"audio_file": wav_file}, headers=headers)
        text = base64.b64encode(wav_file).decode()
        return client.post("/generate_music_with_audio_json", json={"audio_base64": text}, headers=headers)

    first = await send(await connect(settings), "order-7")
    stricter = await connect(settings.model_copy(update={"limits": Limits(source_duration_s=0.1)}))
    assert (await send(stricter, "order-8")).status_code == 413
    again = await send(stricter, "order-7")
    assert (again.status_code, again.json()["request_id"]) == (200, first.json()["request_id"])


async def test_a_resend_is_answered_after_its_adapter_is_unregistered(
    client: httpx.AsyncClient, jobs: MemoryJobs
) -> None:
    jobs.loras_there["night"] = LoraInfo("night", "ab" * 32, "/srv/night.safetensors", 4, ("attn.to_q",), 1_000, "")
    first = await post(client, "order-7", lora_name_or_path="night")
    jobs.loras_there.clear()
    assert (await post(client, "order-8", lora_name_or_path="night")).status_code == 422
    again = await post(client, "order-7", lora_name_or_path="night")
    assert (again.status_code, again.json()["request_id"]) == (200, first.json()["request_id"])


@pytest.mark.parametrize(
    ("stricter", "body"),
    [
        ({"callbacks": CallbackSettings()}, {"callback_url": "https://hooks.example.org/a"}),
        ({"limits": Limits(batch_size=1)}, {"batch_size": 2}),
    ],
    ids=["callback hosts", "batch size"],
)
async def test_a_resend_is_answered_by_a_server_that_has_become_stricter(
    connect: Connect, settings: Settings, stricter: dict[str, Any], body: dict[str, Any]
) -> None:
    first = await post(await connect(settings), "order-7", **body)
    client = await connect(settings.model_copy(update=stricter))
    assert (await post(client, "order-8", **body)).status_code == 422
    again = await post(client, "order-7", **body)
    assert (again.status_code, again.json()["request_id"]) == (200, first.json()["request_id"])


async def test_a_resend_is_answered_while_the_queue_is_full(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    jobs.hold()
    jobs.queue_limit = 1
    first = await post(client, "order-7")
    assert (await post(client, "order-8")).status_code == 429
    again = await post(client, "order-7")
    assert (again.status_code, again.json()["request_id"]) == (200, first.json()["request_id"])


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/generate_music", {}),
        ("/generate_music", {"Accept": "application/zip"}),
        ("/generate_music", {"Prefer": "respond-async"}),
        ("/generate_music_direct", {}),
        ("/generate_music_direct", {"Accept": "multipart/mixed"}),
        ("/generate", {}),
        ("/generate", {"Accept": "audio/wav"}),
    ],
)
async def test_every_route_answers_a_resend_whose_adapter_is_unregistered(
    client: httpx.AsyncClient, jobs: MemoryJobs, path: str, headers: Mapping[str, str]
) -> None:
    jobs.loras_there["night"] = LoraInfo("night", "ab" * 32, "/srv/night.safetensors", 4, ("attn.to_q",), 1_000, "")
    answers = []
    for _ in range(2):
        body = SHORT | {"lora_name_or_path": "night", "batch_size": 2}
        answers.append(await client.post(path, json=body, headers={"Idempotency-Key": "order-7", **headers}))
        jobs.loras_there.clear()
    first, again = answers
    assert (first.status_code, again.status_code) in ((200, 200), (202, 202))
    assert first.headers["content-type"].partition(";")[0] == again.headers["content-type"].partition(";")[0]
    assert len(jobs.views) == 1


async def test_a_resend_that_streams_gets_the_bytes_that_were_sent_first(
    client: httpx.AsyncClient, jobs: MemoryJobs
) -> None:
    jobs.loras_there["night"] = LoraInfo("night", "ab" * 32, "/srv/night.safetensors", 4, ("attn.to_q",), 1_000, "")
    body = {"lora_name_or_path": "night", "stream": True}
    first = await post(client, "order-7", "/generate_music_direct", **body)
    jobs.loras_there.clear()
    again = await post(client, "order-7", "/generate_music_direct", **body)
    assert (again.status_code, again.content) == (200, first.content)


async def test_a_resend_of_a_job_that_has_expired_is_told_so(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    request_id = (await post(client, "order-7", "/generate_music")).json()["request_id"]
    expired = {"outcome": "expired", "results": (), "error": "no longer kept", "error_code": "expired"}
    jobs.views[request_id] = replace(jobs.views[request_id], **expired)
    again = await post(client, "order-7", "/generate_music")
    assert (again.status_code, again.json()["code"]) == (410, "expired")
