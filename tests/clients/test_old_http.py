"""Clients that speak HTTP in old or unusual ways: HTTP/1.0, offers of HTTP/2, HEAD, ranges, odd spellings of a path."""

import asyncio
import json
import re
import socket
import time
from contextlib import ExitStack

import pytest
import requests
import urllib3
import websockets.sync.client

from serve_app import http_protocol, openapi
from serve_app.settings import Settings
from tests.clients.conftest import LiveServer, StartServer

SONG = json.dumps({"prompt": "piano", "audio_duration": 10}).encode()
JSON_SONG = ("Content-Type: application/json", f"Content-Length: {len(SONG)}")
OFFERS_HTTP2 = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQBAAAAAAIAAAAA")


def head(method: str, path: str, *lines: str, version: str = "1.1") -> bytes:
    """A request without its body."""
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: music.example.org", *lines, "", ""]).encode()


LAST = head("GET", "/sample_data", "Connection: close")  # the server closes the connection behind its answer


def test_an_offer_of_http2_leaves_the_body_alone(live_server: LiveServer) -> None:
    request = head("POST", "/generate_music_async", *JSON_SONG, *OFFERS_HTTP2)
    assert live_server.send(request + SONG + LAST).startswith(b"HTTP/1.1 200")
    assert live_server.send(request, SONG, LAST, pause_s=0.05).startswith(b"HTTP/1.1 200")
    assert len(live_server.jobs.views) == 2


def test_an_offer_of_http2_leaves_chunks_alone(live_server: LiveServer) -> None:
    request = head(
        "POST",
        "/generate_music_async",
        JSON_SONG[0],
        "Transfer-Encoding: chunked",
        "Expect: 100-continue",
        *OFFERS_HTTP2,
    )
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(SONG), SONG)
    answer = live_server.send(request, body, LAST, pause_s=0.05)
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200")


@pytest.mark.parametrize(
    ("path", "accept"),
    [
        ("/stream/{song}", "*/*"),
        ("/result/{song}", "audio/wav"),
        ("/result/{song}", "application/zip"),
        ("/result/{song}", "multipart/mixed"),
        ("/events/{song}", "text/event-stream"),
    ],
)
def test_a_client_of_http_1_0_gets_bytes_and_no_chunks(live_server: LiveServer, path: str, accept: str) -> None:
    song = live_server.song()
    path = path.format(song=song)
    answer = live_server.send(head("GET", path, f"Accept: {accept}", version="1.0"))
    lines, _, body = answer.partition(b"\r\n\r\n")
    assert b" 200 " in lines.splitlines()[0]
    assert b"transfer-encoding" not in lines.lower()
    today = live_server.get(path, headers={"Accept": accept})
    boundary = today.headers["Content-Type"].partition("boundary=")[2].encode()
    assert body.startswith(today.content[:2])
    assert len(body) == len(today.content)
    assert boundary or accept == "application/zip" or body == today.content


def test_a_song_that_is_made_reaches_a_client_of_http_1_0_as_plain_bytes(live_server: LiveServer) -> None:
    live_server.call(live_server.jobs.hold_the_second_half)
    song = live_server.song()
    with socket.create_connection((live_server.host, live_server.port), timeout=10) as connection:
        connection.sendall(head("GET", f"/stream/{song}", version="1.0"))
        received = connection.recv(100)
        live_server.call(live_server.jobs.release_the_second_half)
        while chunk := connection.recv(65_536):
            received += chunk
    assert received.partition(b"\r\n\r\n")[2] == live_server.get(f"/result/{song}").content


GET_ROUTES = (
    "/",
    "/health",
    "/sample_data",
    "/loras",
    "/lyrics/tokens?lyrics=la",
    "/queue/status",
    "/docs",
    "/redoc",
    "/openapi.json",
    "/status/{song}",
    "/result/{song}",
    "/result/{song}?format=json",
    "/result/{song}?format=zip",
    "/result/{song}?index=1",
    "/stream/{song}",
    "/events/{song}",
    "/status/unknown",
    "/stream/unknown",
    "/nowhere",
)
OF_THE_MOMENT = ("date", "x-request-id", "transfer-encoding")


@pytest.mark.parametrize("path", GET_ROUTES)
def test_head_is_the_answer_of_get_without_its_body(live_server: LiveServer, path: str) -> None:
    path = path.format(song=live_server.song())
    got, asked = live_server.get(path, stream=True), live_server.request("HEAD", path)
    got.close()
    assert asked.status_code == got.status_code
    assert asked.content == b""
    length_varies = path == "/sample_data" or not got.ok  # another idea each time; the id of the request is in it
    left_out = (*OF_THE_MOMENT, "content-length") if length_varies else OF_THE_MOMENT
    named = [
        {name.lower(): value for name, value in answer.headers.items() if name.lower() not in left_out}
        for answer in (got, asked)
    ]
    for headers in named:
        headers["cache-control"] = re.sub(r"max-age=\d+", "max-age=", headers["cache-control"])
    assert named[0] == named[1]


def test_head_of_a_job_that_runs_does_not_follow_it(live_server: LiveServer) -> None:
    live_server.call(live_server.jobs.hold)
    song = live_server.post("/generate_music_async", json={"prompt": "piano"}).json()["request_id"]
    for path, media_type in (("stream", "audio/wav"), ("events", "text/event-stream")):
        started = time.monotonic()
        asked = live_server.request("HEAD", f"/{path}/{song}")
        assert time.monotonic() - started < 2
        assert (asked.status_code, asked.headers["content-type"].partition(";")[0]) == (200, media_type)
    health = live_server.get("/health", headers={"Connection": "close"})
    assert health.ok


def test_head_of_a_route_that_makes_something_makes_nothing(live_server: LiveServer) -> None:
    asked = live_server.request("HEAD", "/generate_music")
    assert (asked.status_code, asked.headers["allow"]) == (405, "POST")
    assert not live_server.jobs.views


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/health", "GET, HEAD"),
        ("/loras", "GET, HEAD, POST"),
        ("/loras/mine", "DELETE"),
        ("/lyrics/tokens", "GET, HEAD, POST"),
        ("/generate_music", "POST"),
    ],
)
def test_allow_lists_every_method_of_a_path(live_server: LiveServer, path: str, methods: str) -> None:
    answer = live_server.request("PUT", path)
    assert (answer.status_code, answer.headers["allow"]) == (405, methods)


@pytest.mark.parametrize("route", ["stream", "result"])
def test_safari_hears_a_song_that_is_made_by_ranges(live_server: LiveServer, route: str) -> None:
    song = live_server.song()
    whole = live_server.get(f"/{route}/{song}")
    size = len(whole.content)
    assert (whole.status_code, whole.headers["accept-ranges"]) == (200, "bytes")
    assert int(whole.headers["content-length"]) == size
    probe = live_server.get(f"/{route}/{song}", headers={"Range": "bytes=0-1"})
    assert (probe.status_code, probe.headers["content-range"]) == (206, f"bytes 0-1/{size}")
    assert probe.content == whole.content[:2]
    # over the border of what is read at a time
    middle = {"Range": f"bytes=4990-{size - 3}", "If-Range": probe.headers["etag"]}
    assert live_server.get(f"/{route}/{song}", headers=middle).content == whole.content[4990:-2]
    last = live_server.get(f"/{route}/{song}", headers={"Range": "bytes=-7"})
    assert last.content == whole.content[-7:]
    behind = live_server.get(f"/{route}/{song}", headers={"Range": f"bytes={size}-"})
    assert (behind.status_code, behind.headers["content-range"]) == (416, f"bytes */{size}")


def test_a_song_that_is_being_made_has_no_ranges_yet(live_server: LiveServer) -> None:
    live_server.call(live_server.jobs.hold_the_second_half)
    song = live_server.song()
    answer = live_server.get(f"/stream/{song}", headers={"Range": "bytes=0-1"}, stream=True)
    assert (answer.status_code, answer.headers.get("accept-ranges")) == (200, None)
    live_server.call(live_server.jobs.release_the_second_half)
    assert len(answer.content) > 2


@pytest.mark.parametrize("path", ["//health", "/health/", "//health//", "///health"])
def test_a_slash_too_many_is_no_other_route(live_server: LiveServer, path: str) -> None:
    assert live_server.send(head("GET", path, "Connection: close")).startswith(b"HTTP/1.1 200")


def test_a_slash_too_many_does_not_lose_a_body(live_server: LiveServer) -> None:
    for path in ("//generate_music_async", "/generate_music_async/"):
        answer = live_server.post(path, json={"prompt": "piano"}, allow_redirects=False)
        assert answer.status_code == 200
    song = live_server.jobs.submissions.popitem()[0]
    assert live_server.get(f"//status//{song}/").ok
    with websockets.sync.client.connect(f"ws://{live_server.host}:{live_server.port}//ws/{song}/") as socket_:
        assert json.loads(socket_.recv())["event"] == "queued"


def test_the_form_of_an_address_that_forward_proxies_send_is_read(live_server: LiveServer) -> None:
    answer = live_server.send(head("GET", "http://music.example.org/health?a=b", "Connection: close"))
    assert answer.startswith(b"HTTP/1.1 200")


PREFIXED = [("/music", ""), ("", "/music"), ("/apps", "/music")]


@pytest.mark.parametrize(("root_path", "route_prefix"), PREFIXED)
def test_behind_a_prefix_every_link_carries_it(
    start_server: StartServer, live_settings: Settings, root_path: str, route_prefix: str
) -> None:
    """`root_path` is what a proxy in front has taken off, `route_prefix` what Serve mounts the application at."""
    server = start_server(live_settings, root_path=root_path, route_prefix=route_prefix)
    prefix, sent = f"{root_path}{route_prefix}", route_prefix  # as clients see it, and as it comes to us
    queued = server.post(f"{sent}/generate_music_async", json={"prompt": "piano"})
    song = queued.json()["request_id"]
    assert queued.headers["location"] == f"{prefix}/status/{song}"
    assert server.get(f"{sent}//status/{song}/").ok
    made = server.post(f"{sent}/generate_music", json={"prompt": "piano"}).json()
    assert made["audio_url"] == f"{prefix}/result/{made['request_id']}"
    index = server.get(sent or "/").json()
    assert (index["docs"], index["openapi.json"]) == (f"{prefix}/docs", f"{prefix}/openapi.json")
    schema = server.get(f"{sent}/openapi.json").json()
    assert schema["servers"] == [{"url": prefix}]
    assert f"'{prefix}/openapi.json'" in server.get(f"{sent}/docs").text


def test_what_is_kept_and_what_is_not(live_server: LiveServer) -> None:
    song = live_server.song()
    for route in ("result", "stream"):
        kept = live_server.get(f"/{route}/{song}").headers
        assert re.fullmatch(r"private, max-age=(86400|86399|8639\d), immutable", kept["cache-control"])
        assert {"accept", "origin"} <= {name.strip().lower() for name in kept["vary"].split(",")}
    changing = [
        "/health",
        f"/status/{song}",
        "/queue/status",
        f"/result/{song}?format=json",
        "/status/unknown",
        "/nowhere",
    ]
    for path in changing:
        assert live_server.get(path).headers["cache-control"] == "no-store"
    direct = live_server.post("/generate_music_direct", json={"prompt": "piano"})
    assert (direct.status_code, direct.headers["cache-control"]) == (200, "no-store")
    assert live_server.post("/generate_music_async", json={"prompt": 1}).headers["cache-control"] == "no-store"


def test_an_answer_has_one_request_id(live_server: LiveServer) -> None:
    song = live_server.song()
    for path in ("/health", "/nowhere", f"/result/{song}", f"/stream/{song}"):
        for given in ({}, {"X-Request-ID": "mine"}, {"X-Request-ID": "a" * 32}):
            ids = live_server.get(path, headers=given).raw.headers.getlist("X-Request-ID")
            assert len(ids) == 1
            if len(given.get("X-Request-ID", "")) == 32 and song not in path:
                assert ids == ["a" * 32]


def test_what_is_not_http_is_a_problem(live_server: LiveServer) -> None:
    for request in (
        b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
        b"GET /" + b"a" * 100_000,
        b"GET /health HTTP/1.1\r\n\r\n",
    ):
        lines, _, body = live_server.send(request).partition(b"\r\n\r\n")
        assert lines.startswith(b"HTTP/1.1 400")
        problem = openapi.Problem.model_validate_json(body)
        assert (problem.status, problem.code) == (400, "bad_http")
    long = live_server.get("/lyrics/tokens?lyrics=" + "%EA%B0%80" * 1_300)  # Korean: three bytes and nine letters each
    assert long.ok


def test_a_body_that_is_not_http_ends_its_connection_and_nothing_else(live_server: LiveServer) -> None:
    request = head("POST", "/generate_music_async", "Content-Type: application/json", "Transfer-Encoding: chunked")
    assert live_server.send(request, b"zz\r\n", pause_s=0.05).startswith(b"HTTP/1.1 400")
    assert live_server.get("/health").ok
    assert not live_server.jobs.views


def test_a_song_that_fails_while_it_is_heard_breaks_its_connection(
    live_server: LiveServer, caplog: pytest.LogCaptureFixture
) -> None:
    live_server.call(live_server.jobs.hold_the_second_half)
    song = live_server.song()
    with live_server.get(f"/stream/{song}", stream=True) as answer:
        answer.raw.read(10)
        asyncio.run_coroutine_threadsafe(live_server.jobs.fail(song), live_server.loop).result(10)
        with pytest.raises(urllib3.exceptions.ProtocolError):
            answer.raw.read()
    assert not [record for record in caplog.records if record.exc_info]


def test_a_head_that_does_not_come_is_given_up(live_server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.5)
    assert live_server.send() == b""
    lines, _, body = live_server.send(b"GET /health HTTP/1.1\r\nHost: x\r\n").partition(b"\r\n\r\n")
    assert lines.startswith(b"HTTP/1.1 408")
    assert openapi.Problem.model_validate_json(body).code == "request_timeout"
    first = head("GET", "/sample_data")
    assert live_server.send(first, b"GET /health", pause_s=0.1).count(b"HTTP/1.1 ") == 2


def test_a_body_and_an_answer_may_take_longer_than_a_head(
    live_server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.2)
    request = head("POST", "/generate_music_async", *JSON_SONG, "Connection: close")
    assert live_server.send(request, SONG[:10], SONG[10:], pause_s=0.4).startswith(b"HTTP/1.1 20")
    with requests.Session() as kept:
        for _ in range(3):
            assert kept.get(f"{live_server.url}/health", timeout=10).ok
            time.sleep(0.4)
    assert live_server.get("/health").ok


def test_a_body_of_a_request_that_has_none_is_dropped(live_server: LiveServer) -> None:
    chunk = b"400\r\n" + b"a" * 1_024 + b"\r\n"
    request = head("GET", "/health", "Transfer-Encoding: chunked", "Connection: close")
    assert live_server.send(request + chunk * 3 + b"0\r\n\r\n").startswith(b"HTTP/1.1 200")
    length = head("DELETE", "/request/x", "Content-Length: 5", "Connection: close")
    assert live_server.send(length + b"hello").startswith(b"HTTP/1.1 404")


def test_connections_over_the_limit_are_refused_and_the_others_go_on(
    live_server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol.HttpProtocol, "max_connections", 3)
    address = (live_server.host, live_server.port)
    live_server.call(live_server.jobs.hold)
    live_server.send(head("POST", "/generate_music_async", *JSON_SONG, "Connection: close") + SONG)
    [song] = live_server.jobs.views
    with ExitStack() as stack:
        followed = stack.enter_context(websockets.sync.client.connect(f"ws://{address[0]}:{address[1]}/ws/{song}"))
        silent, kept = (stack.enter_context(socket.create_connection(address, timeout=10)) for _ in range(2))
        kept.sendall(head("HEAD", "/sample_data"))
        assert kept.recv(65_536).startswith(b"HTTP/1.1 200")
        for _ in range(3):
            lines, _, body = live_server.send().partition(b"\r\n\r\n")
            assert lines.startswith(b"HTTP/1.1 503")
            assert b"\r\nRetry-After: 2" in lines
            assert openapi.Problem.model_validate_json(body).code == "too_many_connections"
        kept.sendall(head("HEAD", "/sample_data"))
        assert kept.recv(65_536).startswith(b"HTTP/1.1 200")
        assert json.loads(followed.recv(timeout=10))["event"] == "queued"
        silent.close()
        deadline = time.monotonic() + 10
        while not live_server.send(head("GET", "/health", "Connection: close")).startswith(b"HTTP/1.1 200"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    live_server.call(live_server.jobs.release)
