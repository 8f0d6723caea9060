"""Songs that are answered while they are made."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from acestep_engine.audio import MEDIA_TYPES
from acestep_engine.params import AUDIO_FORMATS, AudioFormat
from serve_app.settings import JobSettings, Settings
from tests.serve_app.conftest import Connect
from tests.serve_app.memory import MemoryJobs

SONG = {"prompt": "piano", "audio_duration": 10}
WAIT_S = 10.0


class Listener:
    """A client that hears an answer as it comes, and may leave at any time."""

    def __init__(self, client: httpx.AsyncClient, method: str, path: str, **fields: Any) -> None:
        transport: Any = client._transport
        self._body = json.dumps(fields).encode()
        path, _, query = path.partition("?")
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(self._body)).encode())],
            "client": ("test", 1),
            "server": ("test", 80),
        }
        self.status = 0
        self.headers: dict[str, str] = {}
        self.content = b""
        self.complete = False
        self._came = asyncio.Condition()
        self._left = asyncio.Event()
        self._asked = False
        self.answer = asyncio.create_task(transport.app(self._scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        async with self._came:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            else:
                self.content += message["body"]
                self.complete = not message.get("more_body", False)
            self._came.notify_all()

    async def hear(self, size: int) -> None:
        """Until there are so many bytes."""
        async with asyncio.timeout(WAIT_S), self._came:
            await self._came.wait_for(lambda: len(self.content) >= size)

    def leave(self) -> None:
        self._left.set()


async def queued(client: httpx.AsyncClient, **fields: Any) -> str:
    request_id: str = (await client.post("/generate_music_async", json=SONG | fields)).json()["request_id"]
    return request_id


async def file_of(client: httpx.AsyncClient, request_id: str, index: int = 0) -> bytes:
    return (await client.get(f"/result/{request_id}?index={index}")).content


@pytest.mark.parametrize("audio_format", AUDIO_FORMATS)
async def test_the_sum_of_the_parts_is_the_file(client: httpx.AsyncClient, audio_format: AudioFormat) -> None:
    request_id = await queued(client, format=audio_format)
    answer = await client.get(f"/stream/{request_id}")
    assert answer.status_code == 200
    assert answer.content == await file_of(client, request_id)
    assert answer.headers["content-type"] == MEDIA_TYPES[audio_format]
    assert answer.headers["x-request-id"] == request_id
    assert answer.headers["x-model"] == "tiny"
    assert "content-length" not in answer.headers


async def test_a_song_is_heard_while_it_is_made(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    jobs.hold_the_second_half()
    request_id = await queued(client)
    listener = Listener(client, "GET", f"/stream/{request_id}")
    await listener.hear(1)
    assert (await client.get(f"/status/{request_id}")).json()["status"] == "processing"
    jobs.release_the_second_half()
    await listener.answer
    assert listener.complete
    assert listener.content == await file_of(client, request_id)


async def test_a_song_that_waits_is_waited_for(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    jobs.hold()
    request_id = await queued(client)
    listener = Listener(client, "GET", f"/stream/{request_id}")
    await asyncio.sleep(0)
    jobs.release()
    await listener.answer
    assert listener.content == await file_of(client, request_id)


async def test_each_song_of_a_batch_has_a_stream_of_its_own(client: httpx.AsyncClient) -> None:
    request_id = await queued(client, batch_size=2, manual_seeds=[1, 2])
    for index in range(2):
        answer = await client.get(f"/stream/{request_id}?index={index}")
        assert answer.content == await file_of(client, request_id, index)
        assert answer.headers["x-seed"] == str(index + 1)
    assert (await client.get(f"/stream/{request_id}?index=2")).status_code == 404


@pytest.mark.parametrize("request_id", ["a" * 32, "x"])
async def test_a_stream_of_nothing_is_not_found(client: httpx.AsyncClient, request_id: str) -> None:
    answer = await client.get(f"/stream/{request_id}")
    assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")


async def test_a_song_that_does_not_begin_is_told_as_a_result_that_is_not_there(
    connect: Connect, settings: Settings, jobs: MemoryJobs
) -> None:
    client = await connect(settings.model_copy(update={"jobs": JobSettings(sync_wait_s=0.05)}))
    jobs.hold()
    request_id = await queued(client)
    answer = await client.get(f"/stream/{request_id}")
    assert (answer.status_code, answer.json()["code"]) == (400, "job_not_ended")
    assert int(answer.headers["retry-after"]) >= 1


async def test_a_song_that_fails_before_its_first_byte_is_a_problem(
    client: httpx.AsyncClient, jobs: MemoryJobs
) -> None:
    jobs.fail_with = "numerical", "the model answered NaN"
    request_id = await queued(client)
    answer = await client.get(f"/stream/{request_id}")
    assert (answer.status_code, answer.json()["code"]) == (409, "job_failed")


async def test_a_song_that_fails_later_breaks_its_connection(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    jobs.hold_the_second_half()
    request_id = await queued(client)
    listener = Listener(client, "GET", f"/stream/{request_id}")
    await listener.hear(1)
    await jobs.fail(request_id)
    await listener.answer
    assert listener.content
    assert not listener.complete


async def test_who_listens_to_a_queued_song_may_leave_and_it_goes_on(
    client: httpx.AsyncClient, jobs: MemoryJobs
) -> None:
    jobs.hold_the_second_half()
    request_id = await queued(client)
    listener = Listener(client, "GET", f"/stream/{request_id}")
    await listener.hear(1)
    listener.leave()
    await listener.answer
    jobs.release_the_second_half()
    assert (await client.get(f"/stream/{request_id}")).content == await file_of(client, request_id)


@pytest.mark.parametrize("path", ["/generate_music_direct", "/generate_music_form"])
async def test_a_direct_route_answers_while_the_song_is_made(
    client: httpx.AsyncClient, jobs: MemoryJobs, path: str
) -> None:
    jobs.hold_the_second_half()
    words = {"genre": "piano"} if path.endswith("form") else {"prompt": "piano"}
    listener = Listener(client, "POST", path, stream=True, **words)
    await listener.hear(1)
    jobs.release_the_second_half()
    await listener.answer
    assert listener.status == 200
    assert listener.content == await file_of(client, listener.headers["x-request-id"])


async def test_generate_music_streams_where_audio_is_accepted(client: httpx.AsyncClient) -> None:
    answer = await client.post("/generate_music", json=SONG | {"stream": True}, headers={"Accept": "audio/*"})
    assert answer.content == await file_of(client, answer.headers["x-request-id"])
    assert "content-length" not in answer.headers


@pytest.mark.parametrize("path", ["/generate_music", "/generate_music_async", "/generate_music_direct?format=zip"])
async def test_what_is_no_audio_cannot_be_streamed(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.post(path, json=SONG | {"stream": True})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "stream"


async def test_the_parameters_of_a_streamed_song_ask_for_the_song_and_not_for_the_stream(
    client: httpx.AsyncClient,
) -> None:
    answer = await client.post("/generate_music_direct", json=SONG | {"stream": True})
    result = await client.get(f"/result/{answer.headers['x-request-id']}?format=json")
    assert "stream" not in result.json()["params_json"]


@pytest.mark.parametrize("heard", [0, 1])
async def test_who_leaves_a_song_of_their_own_cancels_it(
    client: httpx.AsyncClient, jobs: MemoryJobs, heard: int
) -> None:
    jobs.hold_the_second_half()
    if not heard:
        jobs.hold()
    listener = Listener(client, "POST", "/generate_music_direct", stream=True)
    await jobs.accepted.wait()
    await listener.hear(heard)
    if heard:
        listener.leave()
        await listener.answer
    else:  # a server that takes the request back
        listener.answer.cancel()
        await asyncio.gather(listener.answer, return_exceptions=True)
    (view,) = jobs.views.values()
    ended = await jobs.wait(view.request_id, WAIT_S)
    assert ended.outcome == "cancelled"


async def test_who_hears_all_of_a_song_cancels_nothing(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    await client.post("/generate_music_direct", json=SONG | {"stream": True})
    await asyncio.sleep(0)
    assert [view.outcome for view in jobs.views.values()] == ["completed"]


async def test_a_song_of_ones_own_that_fails_at_once_is_answered_as_without_a_stream(
    client: httpx.AsyncClient, jobs: MemoryJobs
) -> None:
    jobs.fail_with = "out_of_memory", "the song does not fit"
    failed = await client.post("/generate_music_direct", json=SONG | {"stream": True})
    assert (failed.status_code, failed.json()["code"]) == (500, "out_of_memory")


async def test_a_song_of_ones_own_is_waited_for_until_it_begins(
    connect: Connect, settings: Settings, jobs: MemoryJobs
) -> None:
    client = await connect(settings.model_copy(update={"jobs": JobSettings(sync_wait_s=0.05)}))
    jobs.hold()
    waiting = asyncio.create_task(client.post("/generate_music_direct", json=SONG | {"stream": True}))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    jobs.release()
    answer = await waiting
    assert (answer.status_code, answer.headers["content-type"]) == (200, "audio/wav")


async def test_a_song_of_ones_own_whose_service_is_lost_is_504_and_goes_on(
    client: httpx.AsyncClient, jobs: MemoryJobs
) -> None:
    jobs.hold()
    waiting = asyncio.create_task(client.post("/generate_music_direct", json=SONG | {"stream": True}))
    await jobs.accepted.wait()
    jobs.reachable = False
    jobs.release()
    answer = await waiting
    assert (answer.status_code, answer.json()["code"]) == (504, "still_processing")
    assert [*jobs.views] == [answer.json()["request_id"]]
