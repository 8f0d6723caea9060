"""A web page of another origin, as its browser sends its requests."""

import pytest
import requests

from serve_app.settings import Settings
from tests.clients.conftest import LiveServer, StartServer

PAGE = "https://studio.example.org"
STRANGER = {"Origin": "https://elsewhere.example.net"}
ORIGIN = {"Origin": PAGE}
READABLE = {
    "Accept-Ranges",
    "Content-Disposition",
    "Content-Range",
    "ETag",
    "Location",
    "Preference-Applied",
    "Retry-After",
    "X-Model",
    "X-Request-ID",
    "X-Seed",
}


@pytest.fixture
def live_settings(live_settings: Settings) -> Settings:
    return live_settings.model_copy(update={"cors_origins": (PAGE,)})


def asked_first(server: LiveServer, method: str, path: str, *headers: str, origin: str = PAGE) -> requests.Response:
    """What a browser asks before a request that no form could send."""
    wanted = {"Access-Control-Request-Method": method}
    if headers:
        wanted["Access-Control-Request-Headers"] = ", ".join(headers).lower()
    return server.request("OPTIONS", path, headers={"Origin": origin} | wanted)


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("POST", "/generate_music", ("Content-Type", "Prefer", "Idempotency-Key", "X-Request-ID")),
        ("GET", "/result/unknown", ("Range",)),
        ("GET", "/events/unknown", ("Last-Event-ID",)),
        ("HEAD", "/stream/unknown", ("Authorization", "X-API-Key")),
        ("DELETE", "/request/unknown", ()),
        ("POST", "//generate_music", ("Content-Type",)),
    ],
)
def test_a_browser_may_ask_first(live_server: LiveServer, method: str, path: str, headers: tuple[str, ...]) -> None:
    answer = asked_first(live_server, method, path, *headers)
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == PAGE
    assert method in answer.headers["Access-Control-Allow-Methods"]
    allowed = {name.strip().lower() for name in answer.headers["Access-Control-Allow-Headers"].split(",")}
    assert {name.lower() for name in headers} <= allowed
    assert "Access-Control-Allow-Credentials" not in answer.headers


def test_a_page_that_is_not_listed_may_not_ask(live_server: LiveServer) -> None:
    answer = asked_first(live_server, "POST", "/generate_music", "Content-Type", origin=STRANGER["Origin"])
    assert answer.status_code == 400
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert "Access-Control-Allow-Origin" not in live_server.get("/health", headers=STRANGER).headers


def assert_readable(answer: requests.Response) -> None:
    assert answer.headers["Access-Control-Allow-Origin"] == PAGE
    assert "origin" in answer.headers["Vary"].lower()
    exposed = {name.strip() for name in answer.headers["Access-Control-Expose-Headers"].split(",")}
    assert exposed >= READABLE


def test_a_page_reads_answers_and_errors(live_server: LiveServer) -> None:
    queued = live_server.post("/generate_music_async", json={"prompt": "piano"}, headers=ORIGIN)
    assert_readable(queued)
    song = live_server.song()
    for path, status in (
        ("/health", 200),
        (f"/status/{song}", 200),
        (f"/result/{song}", 200),
        ("/status/unknown", 404),
        ("/nowhere", 404),
        ("/generate_music", 405),
        (f"/result/{song}?index=x", 422),
    ):
        answer = live_server.get(path, headers=ORIGIN)
        assert answer.status_code == status
        assert_readable(answer)


def test_a_page_reads_ranges_of_a_song(live_server: LiveServer) -> None:
    song = live_server.song()
    for route in ("result", "stream"):
        part = live_server.get(f"/{route}/{song}", headers=ORIGIN | {"Range": "bytes=10-19"})
        assert (part.status_code, len(part.content)) == (206, 10)
        assert_readable(part)
        behind = live_server.get(f"/{route}/{song}", headers=ORIGIN | {"Range": "bytes=99999999-"})
        assert behind.status_code == 416
        assert_readable(behind)


def test_a_page_follows_a_job_and_hears_it_while_it_is_made(live_server: LiveServer) -> None:
    live_server.call(live_server.jobs.hold_the_second_half)
    song = live_server.song()
    with (
        live_server.get(f"/events/{song}", headers=ORIGIN, stream=True) as events,
        live_server.get(f"/stream/{song}", headers=ORIGIN, stream=True) as audio,
    ):
        assert events.headers["Content-Type"].startswith("text/event-stream")
        for answer in (events, audio):
            assert_readable(answer)
        live_server.call(live_server.jobs.release_the_second_half)
        assert "event: ended" in events.text
        assert audio.content == live_server.get(f"/result/{song}").content


def test_a_page_reads_what_we_did_not_foresee(live_server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(live_server.jobs, "queue_status", fails)
    answer = live_server.get("/queue/status", headers=ORIGIN)
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert_readable(answer)
    assert len(answer.raw.headers.getlist("X-Request-ID")) == 1


def test_a_song_that_a_browser_keeps_may_still_be_read_by_a_page(live_server: LiveServer) -> None:
    """`<audio>` asks without an Origin; what the browser keeps of its answer is not for `fetch`, which sends one."""
    heard = live_server.get(f"/result/{live_server.song()}")
    assert "Access-Control-Allow-Origin" not in heard.headers
    assert "origin" in heard.headers["Vary"].lower()


def test_every_page_may_be_let_in(start_server: StartServer, live_settings: Settings) -> None:
    server = start_server(live_settings.model_copy(update={"cors_origins": ("*",)}))
    assert asked_first(server, "POST", "/generate_music", "Content-Type").headers["Access-Control-Allow-Origin"] == "*"
    assert server.get("/health", headers=STRANGER).headers["Access-Control-Allow-Origin"] == "*"


def test_no_page_is_let_in_by_default(start_server: StartServer, live_settings: Settings) -> None:
    server = start_server(live_settings.model_copy(update={"cors_origins": Settings().cors_origins}))
    assert asked_first(server, "POST", "/generate_music", "Content-Type").status_code == 405
    headers = server.get("/health", headers=ORIGIN).headers
    assert not [name for name in headers if name.lower().startswith("access-control-")]


@pytest.mark.parametrize(
    "origin", ["https://studio.example.org/", "studio.example.org", "https://*", "", "https://a b"]
)
def test_what_is_no_origin_is_refused_at_start(origin: str) -> None:
    with pytest.raises(ValueError, match="cors_origins"):
        Settings(cors_origins=(origin,))


@pytest.mark.parametrize("origin", ["app://obsidian.md", "http://localhost:5173", "http://[::1]:3000", "null", "*"])
def test_origins_of_every_kind_of_client_are_taken(origin: str) -> None:
    assert Settings(cors_origins=(origin,)).cors_origins == (origin,)
