"""Bodies as real clients write them: repeated fields, files under other names, charsets, nulls as text."""

import asyncio
import base64
import json
import urllib.parse
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from acestep_engine.params import GenerationParams
from deployments.messages import Upload
from serve_app.settings import Limits, Settings
from tests.serve_app.conftest import Connect
from tests.serve_app.memory import MemoryJobs, wav

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
UPLOAD = "/generate_music_with_audio"


def multipart(*parts: tuple[str, bytes]) -> tuple[bytes, dict[str, str]]:
    """A body of parts, each of its headers and its bytes, and the headers of the request."""
    body = b"".join(b"--x\r\n%b\r\n\r\n%b\r\n" % (headers.encode(), content) for headers, content in parts)
    return body + b"--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}


def named(name: str, more: str = "") -> str:
    return f'Content-Disposition: form-data; name="{name}"{more}'


async def song_of(client: httpx.AsyncClient, jobs: MemoryJobs, **request: Any) -> GenerationParams:
    """The song that a POST queues."""
    response = await client.post("/generate_music_async", **request)
    assert response.status_code == 200, response.text
    return jobs.submissions[response.json()["request_id"]].songs[0]


@pytest.mark.parametrize("body", [b"manual_seeds=5&manual_seeds=6", b"manual_seeds[]=5&manual_seeds[]=6", b"seed=5,6"])
async def test_a_field_that_is_a_list_may_be_repeated_in_a_form(
    client: httpx.AsyncClient, jobs: MemoryJobs, body: bytes
) -> None:
    response = await client.post("/generate_music_async", content=body + b"&batch_size=2", headers=FORM)
    assert response.status_code == 200, response.text
    assert [song.seed for song in jobs.submissions[response.json()["request_id"]].songs] == [5, 6]


async def test_of_a_switch_the_last_value_holds_as_checkboxes_send_it(
    client: httpx.AsyncClient, jobs: MemoryJobs
) -> None:
    song = await song_of(client, jobs, content=b"use_erg_tag=1&use_erg_tag=0", headers=FORM)
    assert song.use_erg_tag is False


async def test_a_blank_switch_is_refused_and_not_taken_for_its_default(client: httpx.AsyncClient) -> None:
    response = await client.post("/generate_music_async", content=b"prompt=jazz&use_erg_tag=", headers=FORM)
    assert response.status_code == 422
    assert response.json()["errors"] == [{"field": "use_erg_tag", "problem": "'' is neither true nor false"}]


async def test_other_fields_stand_once(client: httpx.AsyncClient) -> None:
    response = await client.post("/generate_music_async", content=b"infer_step=5&infer_step=6", headers=FORM)
    assert (response.status_code, response.json()["code"]) == (400, "duplicate_key")


@pytest.mark.parametrize("word", ["null", "undefined", "None", " "])
async def test_nothing_that_was_written_as_text_is_nothing(
    client: httpx.AsyncClient, jobs: MemoryJobs, word: str
) -> None:
    nothing = dict.fromkeys(("manual_seeds", "seed", "oss_steps", "vocal_language", "src_audio", "callback_url"), word)
    song = await song_of(client, jobs, data=nothing | {"prompt": "null"})
    assert (song.prompt, song.oss_steps, song.vocal_language) == ("null", (), None)


async def test_a_text_field_may_come_from_a_file(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    body, headers = multipart((named("lyrics", '; filename="words.txt"'), "[verse]\nFrühling".encode()))
    song = await song_of(client, jobs, content=body, headers=headers)
    assert song.lyrics == "[verse]\nFrühling"


@pytest.mark.parametrize("name", ["file", "track", "ref_audio_input", "audio_path"])
async def test_the_only_file_of_a_form_is_the_upload_whatever_it_is_called(
    client: httpx.AsyncClient, jobs: MemoryJobs, wav_file: bytes, name: str
) -> None:
    body, headers = multipart((named(name, '; filename="a.wav"'), wav_file), (named("prompt"), b"jazz"))
    response = await client.post(UPLOAD, content=body, headers=headers)
    assert response.status_code == 200, response.text
    assert jobs.submissions[response.json()["request_id"]].songs[0].task == "audio2audio"


async def test_a_file_input_without_a_choice_is_not_given(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    unchosen = (named("audio_file", '; filename=""') + "\r\nContent-Type: application/octet-stream", b"")
    body, headers = multipart(unchosen, (named("prompt"), b"jazz"))
    assert (await song_of(client, jobs, content=body, headers=headers)).task == "text2music"
    missing = await client.post(UPLOAD, content=body, headers=headers)
    assert "is missing" in missing.json()["detail"]
    empty, headers = multipart((named("audio_file", '; filename="a.wav"'), b""))
    assert "is empty" in (await client.post(UPLOAD, content=empty, headers=headers)).json()["detail"]


@pytest.mark.parametrize("nothing", [None, ""])
async def test_base64_that_is_not_there_is_not_given(
    client: httpx.AsyncClient, jobs: MemoryJobs, nothing: str | None
) -> None:
    assert (await song_of(client, jobs, json={"audio_base64": nothing})).task == "text2music"
    missing = await client.post("/generate_music_with_audio_json", json={"audio_base64": nothing})
    assert "is missing" in missing.json()["detail"]


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", "iso-8859-1", "windows-1252", "utf-16"])
async def test_a_charset_that_is_named_is_obeyed(client: httpx.AsyncClient, jobs: MemoryJobs, charset: str) -> None:
    text = "Frühling"
    in_json = f'{{"prompt": "{text}"}}'.encode(charset)
    song = await song_of(
        client, jobs, content=in_json, headers={"Content-Type": f"application/json; charset={charset}"}
    )
    assert song.prompt == text
    part = (named("prompt") + f"\r\nContent-Type: text/plain; charset={charset}", text.encode(charset))
    body, headers = multipart(part)
    assert (await song_of(client, jobs, content=body, headers=headers)).prompt == text


async def test_a_charset_that_is_not_read_is_415_and_wrong_bytes_say_the_way_out(client: httpx.AsyncClient) -> None:
    unknown = {"Content-Type": "application/json; charset=ebcdic"}
    response = await client.post("/generate_music_async", content=b"{}", headers=unknown)
    assert (response.status_code, response.json()["code"]) == (415, "unsupported_charset")
    latin = await client.post("/generate_music_async", content='{"prompt": "Frühling"}'.encode("latin-1"))
    assert latin.status_code == 400
    assert "send it as UTF-8, with `charset=utf-8` in its Content-Type" in latin.json()["detail"]


@pytest.mark.parametrize(("encoding", "status"), [("UTF-8", 200), ("none", 200), ("identity", 200), ("gzip", 415)])
async def test_an_encoding_that_is_none_is_taken(client: httpx.AsyncClient, encoding: str, status: int) -> None:
    response = await client.post("/generate_music_async", content=b"{}", headers={"Content-Encoding": encoding})
    assert response.status_code == status


async def test_a_part_that_is_encoded_for_mail_is_refused(client: httpx.AsyncClient) -> None:
    body, headers = multipart((named("prompt") + "\r\nContent-Transfer-Encoding: base64", b"amF6eg=="))
    response = await client.post("/generate_music_async", content=body, headers=headers)
    assert response.status_code == 400
    assert "Content-Transfer-Encoding" in response.json()["detail"]


@pytest.mark.parametrize("name", ["prompt", "duration", "seed", "audio_base64"])
async def test_a_field_in_the_address_is_refused_by_its_name(
    client: httpx.AsyncClient, jobs: MemoryJobs, name: str
) -> None:
    response = await client.post(f"/generate_music?{name}=1&utm_source=x", json={})
    assert response.status_code == 422
    assert response.json()["errors"] == [
        {"field": name, "problem": "stands in the address: send it in the body, as JSON or as a form"}
    ]
    assert jobs.views == {}


async def test_a_body_that_makes_progress_may_take_longer_than_a_stall(
    client: httpx.AsyncClient, settings: Settings
) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(6):
            await asyncio.sleep(settings.limits.body_timeout_s / 2)
            yield b"a" * 4_000
        yield b'"}'

    response = await client.post("/generate_music_async", content=slow())
    assert response.status_code == 422  # a prompt of 24,000 characters, which was read to its end
    assert "over the limit of 2,000" in response.json()["detail"]


async def test_a_body_that_trickles_is_408_all_the_same(connect: Connect, settings: Settings) -> None:
    limits = Limits(body_timeout_s=0.2, body_bytes_per_s=4_096)
    client = await connect(settings.model_copy(update={"limits": limits}))

    async def trickling() -> AsyncIterator[bytes]:
        yield b"{"
        for _ in range(100):
            await asyncio.sleep(0.05)
            yield b" "
        yield b"}"

    response = await client.post("/generate_music_async", content=trickling())
    assert (response.status_code, response.json()["code"]) == (408, "body_timeout")
    assert "slower than 4,096 bytes a second" in response.json()["detail"]


MIB = 2**20


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b'{"prompt": "' + b"a" * MIB + b'"}', {}),
        (b'{"prompt": [' + b"[]," * (MIB // 3) + b"[]]}", {}),
        (b'{"audio_base64": "AAAA", "x": "' + b"a" * MIB + b'"}', {}),
        (b'{"audio_base64": ["' + b"A" * MIB + b'"]}', {}),
        (b"prompt=" + b"%41" * (MIB // 3 + 1), FORM),
        (b"audio_base64=AAAA&prompt=" + b"a" * MIB, FORM),
        multipart((named("prompt"), b"a" * (MIB + 1))),
        multipart(*[(named(f"field{index}"), b"a" * (MIB // 8)) for index in range(9)]),
    ],
)
async def test_all_but_the_audio_of_a_body_is_held_to_the_limit_of_json(
    client: httpx.AsyncClient, jobs: MemoryJobs, content: bytes, headers: dict[str, str]
) -> None:
    response = await client.post("/generate_music_async", content=content, headers=headers)
    assert (response.status_code, response.json()["code"]) == (413, "too_large")
    assert jobs.views == {}


@pytest.mark.parametrize("escaped", [False, True])
@pytest.mark.parametrize("kind", ["json", "form", "multipart"])
async def test_audio_in_text_may_be_larger_than_that(
    client: httpx.AsyncClient, jobs: MemoryJobs, kind: str, escaped: bool
) -> None:
    song = wav(seconds=5.0)
    text = base64.b64encode(song).decode()
    assert len(text) > MIB
    if kind == "json":
        quoted = json.dumps({"audio_base64": text, "prompt": 'a \\"audio_base64\\": "b" c'})
        body, headers = (quoted.replace("/", "\\/") if escaped else quoted).encode(), {}
    elif kind == "form":
        escapes = urllib.parse.quote(text, safe="") if escaped else text.replace("+", "%2b")
        body, headers = f"prompt=x&audio_base64={escapes}&infer_step=5".encode(), FORM
    else:
        body, headers = multipart((named("audio_base64"), text.encode()), (named("prompt"), b"x"))
    response = await client.post("/generate_music_with_audio_json", content=body, headers=headers)
    assert response.status_code == 200, response.text
    source = jobs.submissions[response.json()["request_id"]].source
    assert isinstance(source, Upload)
    assert source.content.tobytes() == song


async def test_bodies_that_are_read_share_a_bound_and_small_ones_still_find_room(
    connect: Connect, settings: Settings
) -> None:
    limits = Limits(json_mb=1, upload_mb=2, base64_mb=3, bodies_mb=1, bodies=5)
    client = await connect(settings.model_copy(update={"limits": limits}))
    go = asyncio.Event()

    async def half() -> AsyncIterator[bytes]:
        yield b" " * 900_000
        await go.wait()
        yield b"{}"

    first = asyncio.create_task(client.post("/generate_music_async", content=half()))
    await asyncio.sleep(0.05)
    large = await client.post("/generate_music_async", content=b" " * 900_000 + b"{}")
    assert (large.status_code, large.json()["code"]) == (503, "too_many_bodies")
    assert large.headers["retry-after"]
    small = await client.post("/generate_music_async", content=b"{}")
    assert small.status_code == 200
    go.set()
    assert (await first).status_code == 200
    assert (await client.post("/generate_music_async", content=b" " * 900_000 + b"{}")).status_code == 200


async def test_so_many_bodies_are_read_and_no_more_and_health_answers_all_the_same(
    connect: Connect, settings: Settings
) -> None:
    client = await connect(settings.model_copy(update={"limits": Limits(bodies=3)}))
    go = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await go.wait()
        yield b"}"

    reading = [asyncio.create_task(client.post("/generate_music_async", content=slow())) for _ in range(3)]
    await asyncio.sleep(0.05)
    refused = await client.post("/generate_music_async", content=b"{}")
    assert (refused.status_code, refused.json()["code"]) == (503, "too_many_bodies")
    assert (await client.get("/health")).status_code == 200
    go.set()
    assert [answer.status_code for answer in await asyncio.gather(*reading)] == [200] * 3
