"""Scripts written for the earlier server on port 8019: what they send, and what they check before they go on."""

import base64
import io
import re
import time
import wave
from typing import Any

import pytest
import requests

from tests.clients.conftest import LiveServer
from tests.serve_app.memory import wav

SHORT = {"format": "wav", "audio_duration": 3.0, "prompt": "test async music", "lyrics": "", "infer_step": 5}
INITIALIZE = {
    "checkpoint_path": "",
    "device_id": 0,
    "bf16": True,
    "torch_compile": False,
    "cpu_offload": False,
    "overlapped_decode": False,
}
UPLOADS = ("/generate_music_with_audio", "/generate_music_with_audio_mp3")
IN_BASE64 = ("/generate_music_with_audio_base64", "/generate_music_with_audio_base64_mp3")
IN_JSON = ("/generate_music_with_audio_json", "/generate_music_with_audio_json_mp3")


def until_completed(server: LiveServer, request_id: str) -> dict[str, Any]:
    """Poll as the scripts do: `completed` or `failed` ends their loops."""
    for _ in range(200):
        answer = server.get(f"/status/{request_id}")
        assert answer.status_code == 200
        status: dict[str, Any] = answer.json()
        if status["status"] == "completed":
            return status
        assert status["status"] in ("pending", "processing")
        time.sleep(0.02)
    raise AssertionError(status)


def check_queued(answer: requests.Response) -> str:
    """The first thing all of them do with a queued song."""
    assert answer.status_code == 200, f"{answer.status_code} - {answer.text}"
    body = answer.json()
    assert body["message"]
    return str(body["request_id"])


def test_the_ritual_at_the_start_passes_without_a_key(live_server: LiveServer) -> None:
    health = live_server.get("/health")
    assert (health.status_code, health.json()["status"], health.json()["pipeline_loaded"]) == (200, "healthy", True)
    for options in ({}, {"json": {}}, {"json": INITIALIZE}, {"json": {"model_name": "ACE-Step"}}):
        answer = live_server.post("/initialize", **options)
        assert answer.status_code == 200, answer.text
        assert answer.json()["success"] is True
        assert answer.json()["message"] == "Pipeline initialized successfully"
    assert live_server.jobs.initialized == []


def test_a_song_is_queued_followed_and_fetched(live_server: LiveServer) -> None:
    queued = live_server.post("/generate_music_async", json=SHORT | {"return_file_data": False})
    assert queued.json()["status"] == "queued"
    status = until_completed(live_server, check_queued(queued))
    assert status["created_at"] <= status["started_at"] <= status["completed_at"]
    result = status["result"]
    assert result["success"] is True
    assert result["audio_path"].startswith("./outputs/output_")
    assert (result["content_type"], result["format"]) == ("audio/wav", "wav")
    audio = live_server.get(f"/result/{status['request_id']}")
    assert audio.headers["content-type"] == "audio/wav"
    assert len(audio.content) == result["audio_size_bytes"]
    with wave.open(io.BytesIO(audio.content)) as file:
        assert file.getframerate() == 48_000


@pytest.mark.parametrize("path", UPLOADS)
def test_an_uploaded_song_is_queued(live_server: LiveServer, path: str) -> None:
    files = {"audio_file": ("input.mp3", wav(), "audio/mpeg")}
    data = {"audio_duration": "5.0", "prompt": "jazz", "ref_audio_strength": "0.5", "infer_step": "5"}
    request_id = check_queued(live_server.post(path, files=files, data=data))
    until_completed(live_server, request_id)
    audio = live_server.get(f"/result/{request_id}")
    assert audio.headers["content-type"] == ("audio/mpeg" if path.endswith("mp3") else "audio/wav")


@pytest.mark.parametrize("path", [*IN_BASE64, *IN_JSON])
def test_a_song_in_base64_is_queued(live_server: LiveServer, path: str) -> None:
    fields = {"audio_base64": base64.b64encode(wav()).decode(), "prompt": "jazz", "infer_step": "5"}
    as_json = path in IN_JSON
    request_id = check_queued(live_server.post(path, **({"json": fields} if as_json else {"data": fields})))
    until_completed(live_server, request_id)


def test_a_part_that_is_called_file_is_the_upload(live_server: LiveServer) -> None:
    for name in ("file", "song"):
        answer = live_server.post(UPLOADS[0], files={name: ("in.wav", wav(), "audio/wav")}, data={"prompt": "jazz"})
        check_queued(answer)
    refused = live_server.post(UPLOADS[0], files={"one": ("a.wav", wav()), "two": ("b.wav", wav())})
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["field"] == "audio_file"


def test_direct_routes_answer_the_audio_with_the_headers_that_are_checked(live_server: LiveServer) -> None:
    answer = live_server.post("/generate_music_direct", json=SHORT)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "audio/wav"
    disposition = r'attachment; filename="generated_music_\d+\.wav"'
    assert re.fullmatch(disposition, answer.headers["content-disposition"])
    assert int(answer.headers["content-length"]) == len(answer.content)
    mp3 = live_server.post(
        "/generate_music_with_audio_direct_mp3", files={"audio_file": ("in.wav", wav())}, data={"prompt": "jazz"}
    )
    assert (mp3.status_code, mp3.headers["content-type"]) == (200, "audio/mpeg")


def test_a_form_without_words_is_instrumental(live_server: LiveServer) -> None:
    answer = live_server.post("/generate_music_form", data={"genre": " ", "audio_duration": "2", "infer_step": "3"})
    assert (answer.status_code, answer.content[:4]) == (200, b"RIFF")
    (submission,) = live_server.jobs.submissions.values()
    assert (submission.songs[0].prompt, submission.songs[0].lyrics) == (" ", "")


def test_the_result_as_json_carries_the_song_as_base64(live_server: LiveServer) -> None:
    request_id = live_server.song(format="mp3")
    answer = live_server.get(f"/result/{request_id}?format=json")
    body = answer.json()
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert base64.b64decode(body["audio"]) == live_server.get(f"/result/{request_id}").content
    assert body["content_type"] == "audio/mpeg"
    head = live_server.request("HEAD", f"/result/{request_id}?format=json")
    assert (head.headers["content-length"], head.content) == (answer.headers["content-length"], b"")


@pytest.mark.parametrize(
    ("sent", "field", "value"),
    [
        ({"audio_duration": "2"}, "duration_s", 2.0),
        ({"infer_step": "3"}, "steps", 3),
        ({"use_erg_tag": 0}, "use_erg_tag", False),
        ({"use_erg_lyric": "yes"}, "use_erg_lyric", True),
        ({"oss_steps": []}, "oss_steps", ()),
        ({"manual_seeds": [42]}, "seed", 42),
        ({"manual_seeds": "42.0"}, "seed", 42),
        ({"format": "MP3"}, "seed", None),
        ({"scheduler_type": "Euler"}, "scheduler", "euler"),
        ({"cfg_type": "APG"}, "cfg_type", "apg"),
        ({"prompt": None}, "seed", None),
        ({"ref_audio_input": "/home/me/song.wav", "audio2audio_enable": False}, "task", "text2music"),
    ],
)
def test_values_as_clients_build_them_are_read(
    live_server: LiveServer, sent: dict[str, Any], field: str, value: object
) -> None:
    request_id = check_queued(live_server.post("/generate_music_async", json=sent))
    song = live_server.jobs.submissions[request_id].songs[0]
    assert value is None or getattr(song, field) == value


def test_errors_are_read_by_clients_of_either_kind(live_server: LiveServer) -> None:
    answer = live_server.post("/generate_music", json={"audio_duration": 1000, "infer_step": -5})
    assert answer.status_code == 422
    body = answer.json()
    assert body["success"] is False
    assert body["detail"] == body["error_message"]
    assert [one["field"] for one in body["errors"]] == ["audio_duration", "infer_step"]


def test_the_queue_counts_in_the_words_of_the_earlier_server(live_server: LiveServer) -> None:
    live_server.song()
    counts = live_server.get("/queue/status").json()
    assert counts["queue_size"] == 0
    assert set(counts["status_counts"]) == {"pending", "processing", "completed", "failed"}
    assert counts["total_requests"] == 1
