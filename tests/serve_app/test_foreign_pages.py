"""Web pages that a user happens to visit make this server do nothing, and cannot pretend to be pages of its own."""

import httpx
import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from serve_app.ingress import create_app
from serve_app.settings import Settings
from tests.serve_app.conftest import Connect
from tests.serve_app.memory import MemoryJobs

FOREIGN = {"Origin": "https://evil.example"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/generate_music_async"),
        ("POST", "/generate_music"),
        ("POST", "/generate"),
        ("POST", "/initialize"),
        ("POST", "/loras"),
        ("DELETE", "/request/x"),
    ],
)
@pytest.mark.parametrize("headers", [FOREIGN, {"Origin": "null"}, FOREIGN | {"Sec-Fetch-Site": "cross-site"}])
async def test_a_page_of_another_origin_changes_nothing(
    client: httpx.AsyncClient, jobs: MemoryJobs, method: str, path: str, headers: dict[str, str]
) -> None:
    response = await client.request(method, path, headers=headers)
    assert (response.status_code, response.json()["code"]) == (403, "foreign_origin")
    assert "cors_origins" in response.json()["detail"]
    assert jobs.views == {}
    assert jobs.initialized == []


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://test"},
        {"Origin": "https://test"},
        {"Origin": "https://music.example.org", "X-Forwarded-Host": "music.example.org"},
        {"Origin": "https://music.example.org", "Sec-Fetch-Site": "same-origin"},
    ],
)
async def test_programs_and_pages_of_this_server_are_not_held_up(
    client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    response = await client.post("/generate_music_async", data={"prompt": "jazz"}, headers=headers)
    assert response.status_code == 200


async def test_what_only_reads_is_left_to_the_rules_of_browsers(client: httpx.AsyncClient) -> None:
    assert (await client.get("/health", headers=FOREIGN)).status_code == 200


@pytest.mark.parametrize("origins", [("https://evil.example",), ("*",)])
async def test_an_origin_that_the_operator_allows_may_ask(
    connect: Connect, settings: Settings, origins: tuple[str, ...]
) -> None:
    client = await connect(settings.model_copy(update={"cors_origins": origins}))
    response = await client.post("/generate_music_async", json={}, headers=FOREIGN)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] in ("*", FOREIGN["Origin"])


def test_a_websocket_is_not_opened_for_a_foreign_page(settings: Settings) -> None:
    with TestClient(create_app(settings, MemoryJobs())) as client:
        request_id = client.post("/generate_music_async", json={}).json()["request_id"]
        with (
            pytest.raises(WebSocketDisconnect) as refused,
            client.websocket_connect(f"/ws/{request_id}", headers=FOREIGN),
        ):
            pass
        assert refused.value.code == 1008


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8019", "localhost.evil.example", ""])
async def test_a_name_that_is_made_to_mean_this_machine_is_refused(
    connect: Connect, settings: Settings, host: str
) -> None:
    client = await connect(settings.model_copy(update={"allowed_hosts": ("localhost", "127.0.0.1", "[::1]")}))
    response = await client.get("/health", headers={"Host": host})
    assert (response.status_code, response.json()["code"]) == (421, "foreign_host")
    for allowed in ("localhost", "LOCALHOST:8019", "127.0.0.1:8019", "[::1]:8019", "[::1]"):
        assert (await client.get("/health", headers={"Host": allowed})).status_code == 200, allowed
