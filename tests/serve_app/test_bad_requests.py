"""Bodies that are no request: each gets its own answer, always in the same form, and nothing is accepted."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_app import openapi
from serve_app.schemas import GenerateRequest
from tests.serve_app.memory import MemoryJobs

JSON = {"Content-Type": "application/json"}


async def post(
    client: httpx.AsyncClient, body: bytes, headers: dict[str, str] = JSON, path: str = "/generate_music_async"
) -> tuple[int, str]:
    """Status and code of the answer, whose form is checked."""
    response = await client.post(path, content=body, headers=headers)
    assert response.headers["content-type"] == "application/problem+json"
    problem = openapi.Problem.model_validate(response.json())
    assert problem.success is False
    assert problem.status == response.status_code
    assert problem.error_message == problem.detail
    assert problem.request_id == response.headers["x-request-id"]
    assert str(Path(__file__).parents[2]) not in response.text
    assert "Traceback" not in response.text
    return response.status_code, problem.code


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (b"", (422, "empty_body")),
        (b" \r\n\t", (422, "empty_body")),
        (b'{"prompt": "a"', (400, "bad_json")),
        (b'{"prompt": "\xff"}', (400, "bad_encoding")),
        (b'{"prompt": "a"}'.decode().encode("utf-16"), (400, "bad_encoding")),
        (b"[" * 200_000, (400, "bad_json")),
        (b'{"a":' * 200_000, (400, "bad_json")),
        (b'{"prompt": "a", "prompt": "b"}', (400, "duplicate_key")),
        (b'{"x": {"a": 1, "a": 2}}', (400, "duplicate_key")),
        (b'{"infer_step": ' + b"9" * 5_000 + b"}", (400, "bad_json")),
        (b'{"prompt": "raw \x00 byte"}', (400, "bad_json")),
        (b'{"prompt": "a"} trailing', (400, "bad_json")),
        (b"[]", (422, "not_an_object")),
        (b'"text"', (422, "not_an_object")),
        (b"NaN", (422, "not_an_object")),
        (b'{"unknown": null}', (422, "invalid_request")),
        (b'{"unknown": 1}', (422, "invalid_request")),
        (b'{"\\ud800": 1}', (422, "invalid_request")),
        (b'{"prompt": "\\ud800"}', (422, "invalid_request")),
        (b'{"prompt": "\\u0000"}', (422, "invalid_request")),
        (b'{"format": "\\ud800"}', (422, "invalid_request")),
        (b'{"audio_duration": NaN}', (422, "invalid_request")),
        (b'{"audio_duration": -Infinity}', (422, "invalid_request")),
        (b'{"audio_duration": 1e400}', (422, "invalid_request")),
        (b'{"infer_step": 1e308}', (422, "invalid_request")),
        (b'{"infer_step": 1e400}', (422, "invalid_request")),
        (b'{"manual_seeds": ' + b"9" * 999 + b"}", (422, "invalid_request")),
        (b'{"manual_seeds": [NaN]}', (422, "invalid_request")),
        (b'{"prompt": NaN}', (422, "invalid_request")),
        (b'{"batch_size": 1000000}', (422, "invalid_request")),
    ],
)
async def test_a_bad_json_body_is_refused(
    client: httpx.AsyncClient, jobs: MemoryJobs, body: bytes, answer: tuple[int, str]
) -> None:
    assert await post(client, body) == answer
    assert not jobs.views


@pytest.mark.parametrize(
    ("headers", "body", "answer"),
    [
        ({"Content-Type": "text/plain"}, b"{}", (415, "unsupported_media_type")),
        ({"Content-Type": "application/xml"}, b"<a/>", (415, "unsupported_media_type")),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, b"\x1f\x8b", (415, "unsupported_encoding")),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b'{"prompt": "a"}', (415, "unsupported_media_type")),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"", (422, "empty_body")),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"prompt=%ff%fe", (400, "bad_encoding")),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"prompt=a&prompt=b", (400, "duplicate_key")),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"a=1&" * 1_500, (400, "too_many_fields")),
        ({"Content-Type": "multipart/form-data"}, b"--x--\r\n", (400, "bad_multipart")),
        ({"Content-Type": "multipart/form-data; boundary=x"}, b"prompt", (400, "bad_multipart")),
        ({"Content-Type": "multipart/form-data; boundary=" + "x" * 5_000}, b"a", (400, "bad_multipart")),
        (
            {"Content-Type": "multipart/form-data; boundary=x"},
            b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\ncut off',
            (400, "bad_multipart"),
        ),
        (
            {"Content-Type": "multipart/form-data; boundary=x"},
            b"--x\r\nContent-Disposition: form-data\r\n\r\nnameless\r\n--x--\r\n",
            (400, "bad_multipart"),
        ),
        (
            {"Content-Type": "multipart/form-data; boundary=x"},
            b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\xff\r\n--x--\r\n',
            (400, "bad_encoding"),
        ),
        (
            {"Content-Type": "multipart/form-data; boundary=x"},
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n' * 1_500 + b"--x--\r\n",
            (400, "too_many_fields"),
        ),
    ],
)
async def test_a_bad_content_type_or_form_is_refused(
    client: httpx.AsyncClient, jobs: MemoryJobs, headers: dict[str, str], body: bytes, answer: tuple[int, str]
) -> None:
    assert await post(client, body, headers) == answer
    assert not jobs.views


async def test_json_needs_no_content_type(client: httpx.AsyncClient) -> None:
    assert (await client.post("/generate_music", content=b'{"infer_step": 2}')).status_code == 200


async def test_a_json_body_may_be_as_large_as_the_limit(client: httpx.AsyncClient) -> None:
    body = json.dumps({"infer_step": 2}).encode().ljust(2**20)
    assert (await client.post("/generate_music", content=body, headers=JSON)).status_code == 200


async def test_a_body_over_the_limit_is_refused_before_it_is_read(client: httpx.AsyncClient) -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(100_000):
            read += 65_536
            yield b" " * 65_536

    declared = await client.post("/generate_music", content=endless(), headers=JSON | {"Content-Length": str(10**9)})
    assert declared.status_code == 413
    assert read <= 65_536
    undeclared = await client.post("/generate_music", content=endless(), headers=JSON)
    assert undeclared.status_code == 413
    assert undeclared.json()["code"] == "too_large"
    assert read < 5 * 2**20  # any route may be sent audio


@pytest.mark.parametrize("length", ["-1", "ten", "1" * 500, "²"])
async def test_a_length_that_is_no_number_is_refused(client: httpx.AsyncClient, length: str) -> None:
    headers = {b"Content-Type": b"application/json", b"Content-Length": length.encode()}
    response = await client.post("/generate_music", content=b"{}", headers=headers)
    assert response.status_code in (400, 413)


async def test_a_slow_body_is_408(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(30)
        yield b"}"

    response = await client.post("/generate_music", content=slow(), headers=JSON)
    assert response.status_code == 408
    assert response.json()["code"] == "body_timeout"
    assert not jobs.views


async def test_wrong_fields_are_listed_with_their_problems(client: httpx.AsyncClient) -> None:
    response = await client.post("/generate_music", json={"infer_step": 0, "promt": "a"})
    assert response.json()["errors"] == [
        {"field": "infer_step", "problem": "0 is under the limit of 1"},
        {"field": "promt", "problem": "is not a field of this request; did you mean prompt?"},
    ]


async def test_unknown_routes_and_methods_are_problems_too(client: httpx.AsyncClient) -> None:
    for method, path, status in (("GET", "/nowhere", 404), ("GET", "/generate_music", 405), ("PUT", "/health", 405)):
        response = await client.request(method, path)
        assert response.status_code == status
        openapi.Problem.model_validate(response.json())
    assert response.headers["allow"] == "GET, HEAD"


async def test_an_unforeseen_failure_tells_the_client_nothing(
    client: httpx.AsyncClient, jobs: MemoryJobs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken() -> None:
        raise OSError("cannot read /srv/secret/store.sqlite")

    monkeypatch.setattr(jobs, "queue_status", broken)
    response = await client.get("/queue/status")
    assert response.status_code == 500
    body = response.json()
    openapi.Problem.model_validate(body)
    assert "secret" not in response.text
    assert any(body["request_id"] in record.getMessage() and record.exc_info for record in caplog.records)


async def test_nothing_raw_reaches_the_log(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="ray.serve.acestep"):
        await client.get("/status/a%0d%0aHTTP%2f1.1 200 OK%1b[31m")
        await client.post("/generate_music", json={"prompt\r\n\x1b[31m": 1})
    lines = [record.getMessage() for record in caplog.records if record.name == "ray.serve.acestep"]
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()), inner, max_size=4),
    max_leaves=10,
)
FIELDS = st.sampled_from(sorted(GenerateRequest.model_fields))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=ANY_JSON | st.dictionaries(FIELDS, ANY_JSON, max_size=5))
async def test_no_json_whatsoever_is_a_server_error(client: httpx.AsyncClient, body: object) -> None:
    content = json.dumps(body).encode()
    response = await client.post("/generate_music_async", content=content, headers=JSON)
    assert response.status_code in (200, 400, 422, 429), response.text
    response.json()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=200),
    kind=st.sampled_from(["application/json", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"]),
)
async def test_no_bytes_whatsoever_are_a_server_error(client: httpx.AsyncClient, content: bytes, kind: str) -> None:
    response = await client.post("/generate_music_async", content=content, headers={"Content-Type": kind})
    assert response.status_code in (200, 400, 415, 422, 429), response.text
