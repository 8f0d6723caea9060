"""Source audio: uploaded as a part, in base64, or named in the operator's folder."""

import asyncio
import base64
import io
import os
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile

from acestep_engine.encode import encode_audio
from acestep_engine.params import AUDIO_FORMATS, AudioFormat
from deployments.messages import Upload
from serve_app import openapi
from serve_app.settings import Settings
from tests.engine.recordings import recording
from tests.serve_app.conftest import Connect
from tests.serve_app.memory import MemoryJobs, wav

QUEUED_ROUTES = [
    "/generate_music_with_audio",
    "/generate_music_with_audio_base64",
    "/generate_music_with_audio_json",
    "/generate_music_with_audio_mp3",
    "/generate_music_with_audio_base64_mp3",
    "/generate_music_with_audio_json_mp3",
]
UPLOAD, IN_JSON, DIRECT = QUEUED_ROUTES[0], QUEUED_ROUTES[2], "/generate_music_with_audio_direct_mp3"


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def refusal(
    client: httpx.AsyncClient, data: bytes, path: str = UPLOAD, part: tuple[str, str] = ("a.wav", "audio/wav")
) -> tuple[int, str]:
    """Status and code of the answer to an upload."""
    response = await client.post(path, files={"audio_file": (part[0], data, part[1])})
    openapi.Problem.model_validate(response.json())
    return response.status_code, response.json()["code"]


@pytest.mark.parametrize("path", QUEUED_ROUTES)
@pytest.mark.parametrize("way", ["multipart", "form", "json"])
async def test_every_route_takes_the_upload_in_every_way(
    client: httpx.AsyncClient, jobs: MemoryJobs, wav_file: bytes, path: str, way: str
) -> None:
    fields = {"prompt": "jazz fusion remix", "infer_step": "20", "ref_audio_strength": "0.6"}
    if way == "multipart":
        response = await client.post(path, data=fields, files={"audio_file": ("input.wav", wav_file, "audio/wav")})
    elif way == "form":
        response = await client.post(path, data=fields | {"audio_base64": base64_of(wav_file)})
    else:
        body = {"prompt": "jazz fusion remix", "infer_step": 20, "ref_audio_strength": 0.6}
        response = await client.post(path, json=body | {"audio_base64": base64_of(wav_file)})
    assert response.status_code == 200, response.text
    assert response.json().keys() >= {"success", "request_id", "message"}
    submission = jobs.submissions[response.json()["request_id"]]
    assert isinstance(submission.source, Upload)
    assert submission.source.content.tobytes() == wav_file
    assert (submission.songs[0].task, submission.songs[0].ref_audio_strength) == ("audio2audio", 0.6)
    assert submission.audio_format == ("mp3" if path.endswith("_mp3") else "wav")
    assert submission.save_file
    assert "audio_base64" not in submission.request_json


async def test_direct_mp3_waits_and_answers_mp3(client: httpx.AsyncClient, jobs: MemoryJobs, wav_file: bytes) -> None:
    fields = {"audio_duration": "30.0", "prompt": "jazz fusion remix", "infer_step": "20", "format": "wav"}
    response = await client.post(DIRECT, data=fields, files={"audio_file": ("input.mp3", wav_file)})
    assert response.status_code == 200
    assert response.headers["content-type"] == "audio/mpeg"
    assert soundfile.info(io.BytesIO(response.content)).format == "MP3"
    (submission,) = jobs.submissions.values()
    assert not submission.save_file


@pytest.mark.parametrize("audio_format", AUDIO_FORMATS)
async def test_the_bytes_and_not_the_name_say_what_it_is(
    client: httpx.AsyncClient, jobs: MemoryJobs, audio_format: AudioFormat
) -> None:
    data = encode_audio(np.zeros((2, 24_000), np.float32), audio_format, {})
    for part in (("../../x", "text/plain"), ("x.exe", "application/octet-stream"), ("", "")):
        response = await client.post(UPLOAD, files={"audio_file": (part[0], data, part[1])})
        assert response.status_code == 200, response.text
    without_type = b'--x\r\nContent-Disposition: form-data; name="audio_file"\r\n\r\n' + data + b"\r\n--x--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert (await client.post(UPLOAD, content=without_type, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"just text",
        b"RIFF\x24\x00\x00\x00WAVEfmt ",
        b"PK\x03\x04" + bytes(200),
        b"#EXTM3U\nhttp://example.org/song.mp3\n",
        b"\xff\xfb\x90\x00" + bytes(3),
    ],
)
async def test_what_is_no_audio_is_refused(client: httpx.AsyncClient, jobs: MemoryJobs, data: bytes) -> None:
    status, code = await refusal(client, data)
    assert status == 422
    assert code in ("unreadable_audio", "invalid_request")
    assert not jobs.views


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11" + bytes(200), "a WMA or ASF file"),
        (b"wvpk" + bytes(200), "a WavPack file"),
        (b"\x00\x00\x00\x20ftypM4A " + bytes(200), "an MP4 or M4A file"),
    ],
)
async def test_a_known_kind_that_cannot_be_read_is_named_with_the_way_out(
    client: httpx.AsyncClient, data: bytes, words: str
) -> None:
    response = await client.post(UPLOAD, files={"audio_file": data})
    assert (response.status_code, response.json()["code"]) == (422, "unreadable_audio")
    assert f"this is {words}" in response.json()["detail"]
    assert "convert it: ffmpeg -i FILE out.wav" in response.json()["detail"]


async def test_a_trimmed_mp3_with_junk_before_it_is_accepted(client: httpx.AsyncClient) -> None:
    data = encode_audio(np.zeros((2, 96_000), np.float32), "mp3", {})
    response = await client.post(UPLOAD, files={"audio_file": b"\r\n" + data[: len(data) // 2]})
    assert response.is_success, response.text


@pytest.mark.parametrize("kind", ["m4a", "webm of opus"])
async def test_what_phones_and_browsers_record_is_accepted(
    client: httpx.AsyncClient, jobs: MemoryJobs, kind: str
) -> None:
    pytest.importorskip("av")
    data = recording(kind)
    response = await client.post(UPLOAD, files={"audio_file": ("blob", data, "audio/webm;codecs=opus")})
    assert response.is_success, response.text
    (submission,) = jobs.submissions.values()
    assert submission.songs[0].duration_s == pytest.approx(2, abs=0.2)


async def test_audio_without_or_with_bad_samples_is_refused(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    assert (await refusal(client, wav(seconds=0)))[0] == 422
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full((4_800, 2), np.nan, np.float32), 48_000, format="WAV", subtype="FLOAT")
    assert (await refusal(client, buffer.getvalue()))[0] == 422
    assert not jobs.views


@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (192_000, 2), (44_100, 1)])
async def test_usual_rates_and_mono_are_accepted(client: httpx.AsyncClient, rate: int, channels: int) -> None:
    response = await client.post(UPLOAD, files={"audio_file": wav(rate=rate, channels=channels)})
    assert response.status_code == 200, response.text


async def test_a_decode_bomb_is_413(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", 8_000, 1, format="FLAC", subtype="PCM_16") as file:
        for _ in range(11):
            file.write(np.zeros(8_000 * 60, np.int16))
    assert len(buffer.getvalue()) < 2**20
    assert await refusal(client, buffer.getvalue()) == (413, "audio_too_large")
    assert not jobs.views


async def test_an_upload_over_the_limit_is_413(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    assert await refusal(client, b"ID3" + bytes(2 * 2**20)) == (413, "too_large")
    assert await refusal(client, b"ID3" + bytes(5 * 2**20)) == (413, "too_large")
    assert not jobs.views


async def test_a_form_field_may_hold_a_whole_base64_upload(client: httpx.AsyncClient, jobs: MemoryJobs) -> None:
    data = wav(seconds=8)  # 1.5 MB, 2 MB as base64: over the 1 MiB that forms are usually held to
    for way in ({"data": {"audio_base64": base64_of(data)}}, {"files": {"audio_base64": (None, base64_of(data))}}):
        response = await client.post("/generate_music_with_audio_base64", **way)
        assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A", "is not whole"),
        ("AAAAA", "is not whole"),
        ("AAAA=", "base64"),
        ("Ā" * 8, "not base64, at position 0"),
        ("AA*A", "not base64, at position 2"),
        ("AA-_", "URL-safe alphabet"),
        ("AA A", "percent-encode"),
        ("data:audio/wav;base64,", "is empty"),
        (5, "is not text"),
    ],
)
async def test_bad_base64_is_refused_with_its_reason(client: httpx.AsyncClient, text: Any, words: str) -> None:
    response = await client.post(IN_JSON, json={"audio_base64": text})
    assert response.status_code == 422
    (problem,) = response.json()["errors"]
    assert problem["field"] == "audio_base64"
    assert words in problem["problem"]


async def test_base64_of_text_is_unreadable_audio(client: httpx.AsyncClient) -> None:
    response = await client.post(IN_JSON, json={"audio_base64": base64_of(b"no audio at all")})
    assert (response.status_code, response.json()["code"]) == (422, "unreadable_audio")


async def test_a_data_uri_and_line_ends_are_read(client: httpx.AsyncClient, jobs: MemoryJobs, wav_file: bytes) -> None:
    lines = base64.encodebytes(wav_file).decode().replace("\n", "\r\n")
    for text in (f"data:audio/wav;base64,{base64_of(wav_file)}", lines):
        response = await client.post(IN_JSON, json={"audio_base64": text})
        assert response.status_code == 200, response.text
    sources = [one.source for one in jobs.submissions.values()]
    assert all(isinstance(source, Upload) and source.content.tobytes() == wav_file for source in sources)


async def test_an_upload_route_needs_exactly_one_source(client: httpx.AsyncClient, wav_file: bytes) -> None:
    for path in (*QUEUED_ROUTES, DIRECT):
        response = await client.post(path, json={"prompt": "a"})
        assert response.status_code == 422
        assert "audio_file: is missing" in response.json()["detail"]
    both = await client.post(UPLOAD, files={"audio_file": wav_file}, data={"audio_base64": "AAAA"})
    assert both.status_code == 422
    assert "comes with audio_file" in both.json()["detail"]


async def test_health_answers_while_a_large_upload_is_read(client: httpx.AsyncClient) -> None:
    body = {"audio_base64": base64_of(wav(seconds=10))}
    await client.get("/health")
    uploads = [asyncio.create_task(client.post(IN_JSON, json=body)) for _ in range(4)]
    slowest = 0.0
    while not all(upload.done() for upload in uploads):
        started = time.perf_counter()
        assert (await client.get("/health")).status_code == 200
        slowest = max(slowest, time.perf_counter() - started)
        await asyncio.sleep(0.005)
    assert slowest < 0.5  # generous: two busy cores


async def test_a_file_in_the_audio_folder_is_the_source(
    client: httpx.AsyncClient, jobs: MemoryJobs, audio_root: Path, wav_file: bytes
) -> None:
    (audio_root / "deep").mkdir()
    (audio_root / "deep" / "тема.wav").write_bytes(wav_file)
    named = {"ref_audio_input": "deep/тема.wav"}
    response = await client.post("/generate_music_async", json=named | {"audio2audio_enable": True})
    assert response.status_code == 200, response.text
    submission = jobs.submissions[response.json()["request_id"]]
    assert submission.songs[0].task == "audio2audio"
    assert isinstance(submission.source, Upload)
    assert submission.source.content.tobytes() == wav_file
    off = await client.post("/generate_music_async", json=named)
    assert jobs.submissions[off.json()["request_id"]].source is None  # as the published pipeline has it


async def test_what_lies_outside_the_audio_folder_is_refused_alike_whether_it_exists(
    client: httpx.AsyncClient, jobs: MemoryJobs, audio_root: Path, wav_file: bytes
) -> None:
    outside = audio_root.parent / "secret.wav"
    outside.write_bytes(wav_file)
    (audio_root / "folder").mkdir()
    (audio_root / "link.wav").symlink_to(outside)
    (audio_root / "out").symlink_to(audio_root.parent)
    os.mkfifo(audio_root / "fifo.wav")
    names = [
        "../secret.wav",
        "../missing.wav",
        "missing.wav",
        "folder",
        "folder/../../secret.wav",
        "./x.wav",
        str(outside),
        "/etc/passwd",
        "/missing",
        "link.wav",
        "out/secret.wav",
        "fifo.wav",
        "/dev/zero",
        "/proc/self/environ",
        "http://example.org/a.wav",
        "file:///etc/passwd",
        "facebook/musicgen",
        "..\\secret.wav",
        "a" * 1_000,
    ]
    answers = set()
    for name in names:
        response = await client.post(
            "/generate_music_async", json={"ref_audio_input": name, "audio2audio_enable": True}
        )
        body = response.json()
        answers.add((response.status_code, body["code"], body["detail"]))
    assert len(answers) == 1
    assert next(iter(answers))[0] == 422
    assert not jobs.views


async def test_without_an_audio_folder_no_file_can_be_named(connect: Connect, settings: Settings) -> None:
    client = await connect(settings.model_copy(update={"audio_root": None}))
    response = await client.post("/generate_music_async", json={"ref_audio_input": "a.wav", "audio2audio_enable": True})
    assert response.status_code == 422
    assert "has not configured" in response.json()["detail"]


async def test_audio2audio_without_a_source_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/generate_music", json={"audio2audio_enable": True})
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "audio_file"
