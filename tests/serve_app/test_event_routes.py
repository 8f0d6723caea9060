"""Jobs followed live."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient, WebSocketTestSession
from starlette.websockets import WebSocketDisconnect

from serve_app.ingress import create_app
from serve_app.settings import Limits, Settings
from tests.serve_app.conftest import Connect
from tests.serve_app.memory import MemoryJobs

SHORT = {"audio_duration": 2.0, "infer_step": 2}


async def queued(client: httpx.AsyncClient) -> str:
    request_id: str = (await client.post("/generate_music_async", json=SHORT)).json()["request_id"]
    return request_id


def parsed(text: str) -> list[tuple[int, str, Any]]:
    """The events of a stream: id, kind, data."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "event" in fields:
            found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return found


async def test_a_job_is_followed_from_the_queue_to_exactly_one_end(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    jobs.hold()
    request_id = await queued(client)
    following = asyncio.create_task(client.get(f"/events/{request_id}"))
    await asyncio.sleep(0.05)
    jobs.release()
    response = await following
    assert response.headers["content-type"].startswith("text/event-stream")
    events = parsed(response.text)
    assert [kind for _, kind, _ in events] == ["queued", "diffusion", "ended"]
    assert events[-1][2]["outcome"] == "completed"


async def test_who_reconnects_hears_what_he_missed_and_then_no_more(
    client: httpx.AsyncClient, jobs: MemoryJobs
) -> None:
    request_id = await queued(client)
    events = parsed((await client.get(f"/events/{request_id}")).text)
    first = {"Last-Event-ID": str(events[0][0])}
    assert parsed((await client.get(f"/events/{request_id}", headers=first)).text) == events[1:]
    last = {"Last-Event-ID": str(events[-1][0])}
    assert (await client.get(f"/events/{request_id}", headers=last)).status_code == 204


async def test_a_reconnection_with_the_newest_id_hears_only_what_is_new(
    client: httpx.AsyncClient, jobs: MemoryJobs
) -> None:
    jobs.hold()
    request_id = await queued(client)
    newest = (await jobs.events(request_id, 0, 0.0)).events[-1].event_id
    headers = {"Last-Event-ID": str(newest)}
    following = asyncio.create_task(client.get(f"/events/{request_id}", headers=headers))
    await asyncio.sleep(0.05)
    jobs.release()
    assert [kind for _, kind, _ in parsed((await following).text)] == ["diffusion", "ended"]


async def test_a_cancelled_job_ends_so(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    jobs.hold()
    request_id = await queued(client)
    await client.delete(f"/request/{request_id}")
    assert parsed((await client.get(f"/events/{request_id}")).text)[-1][2]["outcome"] == "cancelled"


@pytest.mark.parametrize("request_id", ["x", "0" * 32])
async def test_an_unknown_job_cannot_be_followed(client: httpx.AsyncClient, request_id: str) -> None:
    response = await client.get(f"/events/{request_id}")
    assert (response.status_code, response.json()["code"]) == (404, "job_not_found")


@pytest.mark.parametrize("event_id", ["x", "-1", "1.5", "9" * 30, "0" * 20 + "1", "9" * 5_000, str(2**63)])
async def test_what_is_no_event_id_is_refused(client: httpx.AsyncClient, event_id: str) -> None:
    request_id = await queued(client)
    response = await client.get(f"/events/{request_id}", headers={"Last-Event-ID": event_id})
    assert response.status_code == 422


async def test_followers_are_bounded(connect: Connect, settings: Settings, jobs: MemoryJobs) -> None:
    client = await connect(settings.model_copy(update={"limits": Limits(followers=1)}))
    jobs.hold()
    request_id = await queued(client)
    first = asyncio.create_task(client.get(f"/events/{request_id}"))
    await asyncio.sleep(0.05)
    second = await client.get(f"/events/{request_id}")
    assert (second.status_code, second.json()["code"]) == (503, "too_many_followers")
    jobs.release()
    await first
    assert (await client.get(f"/events/{request_id}?after=1")).status_code == 200


def all_of(socket: WebSocketTestSession) -> tuple[list[Any], int]:
    """The messages of a WebSocket and the code it was closed with."""
    messages = []
    while True:
        try:
            messages.append(socket.receive_json())
        except WebSocketDisconnect as end:
            return messages, end.code


def test_a_websocket_tells_the_same_and_closes_after_the_end(settings: Settings) -> None:
    with TestClient(create_app(settings, MemoryJobs())) as client:
        request_id = client.post("/generate_music_async", json=SHORT).json()["request_id"]
        with client.websocket_connect(f"/ws/{request_id}") as socket:
            messages, code = all_of(socket)
        assert code == 1000
        told = [(one["id"], one["event"], one["data"]) for one in messages]
        assert told == parsed(client.get(f"/events/{request_id}").text)
        with client.websocket_connect(f"/ws/{request_id}?after={told[0][0]}") as socket:
            assert [one["id"] for one in all_of(socket)[0]] == [event_id for event_id, _, _ in told[1:]]


def test_a_websocket_takes_the_first_protocol_that_a_browser_offers(settings: Settings) -> None:
    with TestClient(create_app(settings, MemoryJobs())) as client:
        request_id = client.post("/generate_music_async", json={}).json()["request_id"]
        with client.websocket_connect(f"/ws/{request_id}", subprotocols=["token.abc", "other"]) as socket:
            assert socket.accepted_subprotocol == "token.abc"
            all_of(socket)  # the test client's exit may race with a session that goes on
        with client.websocket_connect(f"/ws/{request_id}") as socket:
            assert socket.accepted_subprotocol is None
            all_of(socket)


def test_a_websocket_has_an_id_and_a_line_in_the_log(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    with TestClient(create_app(settings, MemoryJobs())) as client, caplog.at_level("INFO", "ray.serve.acestep"):
        request_id = client.post("/generate_music_async", json={}).json()["request_id"]
        with client.websocket_connect(f"/ws/{request_id}") as socket:
            all_of(socket)
            headers = {name.decode(): value.decode() for name, value in socket.extra_headers or []}
    line = caplog.records[-1].getMessage()
    assert f"WebSocket /ws/{request_id} 1000" in line
    assert line.startswith(headers["x-request-id"])


def test_what_a_follower_sends_means_nothing(settings: Settings) -> None:
    jobs = MemoryJobs()
    with TestClient(create_app(settings, jobs)) as client:
        request_id = client.post("/generate_music_async", json={}).json()["request_id"]
        with client.websocket_connect(f"/ws/{request_id}") as socket:
            socket.send_bytes(b"\x00")
            socket.send_text("hello")
            messages, code = all_of(socket)
    assert (messages[-1]["event"], code) == ("ended", 1000)


@pytest.mark.parametrize("path", ["x", "0" * 32])
def test_a_websocket_for_an_unknown_job_is_closed_with_a_reason(settings: Settings, path: str) -> None:
    with TestClient(create_app(settings, MemoryJobs())) as client, client.websocket_connect(f"/ws/{path}") as socket:
        assert all_of(socket) == ([], 1008)
