"""Clients that speak HTTP in old or unusual ways: HTTP/1.0, offers of HTTP/2, HEAD, ranges, odd spellings of a path."""

import json

from tests.clients.conftest import LiveServer

SONG = json.dumps({"prompt": "piano", "audio_duration": 10}).encode()
JSON_SONG = ("Content-Type: application/json", f"Content-Length: {len(SONG)}")
OFFERS_HTTP2 = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQBAAAAAAIAAAAA")


def head(method: str, path: str, *lines: str, version: str = "1.1") -> bytes:
    """A request without its body."""
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: music.example.org", *lines, "", ""]).encode()


LAST = head("GET", "/sample_data", "Connection: close")  # the server closes the connection behind its answer


def test_an_offer_of_http2_leaves_the_body_alone(live_server: LiveServer) -> None:
    request = head("POST", "/generate_music_async", *JSON_SONG, *OFFERS_HTTP2)
    assert live_server.send(request + SONG + LAST).startswith(b"HTTP/1.1 202")
    assert live_server.send(request, SONG, LAST, pause_s=0.05).startswith(b"HTTP/1.1 202")
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
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 202")
