"""Clients of the published `infer-api.py`, `trainer-api.py` and `ace_server.py`, which all call `/generate`."""

from typing import Any

import pytest

from serve_app import openapi
from serve_app.settings import JobSettings
from tests.clients.conftest import LiveServer, StartServer
from tests.serve_app.memory import wav

INFER_API: dict[str, Any] = {
    "checkpoint_path": "/models/ace-step",
    "bf16": True,
    "torch_compile": False,
    "device_id": 0,
    "output_path": "/tmp/out.wav",
    "audio_duration": 10.0,
    "prompt": "funk, pop",
    "lyrics": "[verse]\nNeon lights",
    "infer_step": 20,
    "guidance_scale": 15.0,
    "scheduler_type": "euler",
    "cfg_type": "apg",
    "omega_scale": 10.0,
    "actual_seeds": [3299954530],
    "guidance_interval": 0.5,
    "guidance_interval_decay": 0.0,
    "min_guidance_scale": 3.0,
    "use_erg_tag": True,
    "use_erg_lyric": True,
    "use_erg_diffusion": True,
    "oss_steps": [],
    "guidance_scale_text": 0.0,
    "guidance_scale_lyric": 0.0,
}


def test_the_json_of_infer_api_is_answered_in_its_words(live_server: LiveServer) -> None:
    answer = live_server.post("/generate", json=INFER_API)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    openapi.MadeByGenerate.model_validate(body)
    assert (body["status"], body["message"]) == ("success", "Audio generated successfully")
    assert body["output_path"].startswith("./outputs/")  # never where a client says
    assert body["output_path"] == body["audio_path"] == body["path"]
    ignored = {"checkpoint_path", "bf16", "torch_compile", "device_id", "output_path"}
    assert set(body["ignored_fields"]) == ignored
    (submission,) = live_server.jobs.submissions.values()
    assert (submission.songs[0].seed, submission.songs[0].use_erg_lyric) == (3299954530, True)
    assert submission.save_file


def test_the_json_of_trainer_api_is_answered_in_its_words(live_server: LiveServer) -> None:
    asked = {"prompt": "folk", "duration": 30, "infer_steps": 10, "guidance_scale": 7, "omega_scale": 5, "seed": 42}
    body = live_server.post("/generate", json=asked).json()
    assert (body["prompt"], body["seed"], body["sample_rate"]) == ("folk", 42, 48_000)
    assert body["audio_path"]
    (submission,) = live_server.jobs.submissions.values()
    song = submission.songs[0]
    assert (song.duration_s, song.steps, song.seed) == (30.0, 10, 42)


@pytest.mark.parametrize("encoding", ["form", "multipart"])
def test_the_form_of_ace_server_is_answered_with_an_mp3(live_server: LiveServer, encoding: str) -> None:
    fields = {"genre": "rock", "lyrics": "la la", "omega_scale": "10"}
    if encoding == "form":
        answer = live_server.post("/generate", data=fields)
    else:
        answer = live_server.post("/generate", files={name: (None, value) for name, value in fields.items()})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "audio/mpeg")
    assert ".mp3" in answer.headers["content-disposition"]
    (submission,) = live_server.jobs.submissions.values()
    song = submission.songs[0]
    assert (song.prompt, song.steps, song.use_erg_lyric) == ("rock", 50, True)
    assert song.duration_s >= 30
    assert submission.save_file


def test_accept_chooses_audio_and_json_whatever_was_sent(live_server: LiveServer) -> None:
    asked = {"prompt": "rock", "duration": "10", "infer_step": "5"}
    audio = live_server.post("/generate", json=asked, headers={"Accept": "audio/*"})
    assert audio.headers["content-type"] == "audio/wav"
    json = live_server.post("/generate", data=asked, headers={"Accept": "application/json"})
    assert json.json()["status"] == "success"


def test_a_song_that_takes_too_long_for_json_is_said_to_be_processing(
    start_server: StartServer, live_settings: Any
) -> None:
    server = start_server(live_settings.model_copy(update={"jobs": JobSettings(sync_wait_s=0.05)}))
    server.call(server.jobs.hold)
    answer = server.post("/generate", json={"prompt": "rock"})
    assert (answer.status_code, answer.json()["status"]) == (200, "processing")
    assert answer.json()["request_id"] in server.jobs.views
    server.call(server.jobs.release)


def test_a_field_of_no_known_server_is_still_refused(live_server: LiveServer) -> None:
    answer = live_server.post("/generate", json={"prompt": "rock", "bpm": 120})
    assert answer.status_code == 422
    assert answer.json()["errors"] == [
        {"field": "bpm", "problem": "is not a field of this request; say it in prompt, as one of its tags"}
    ]


def test_a_source_comes_with_it_as_on_every_route(live_server: LiveServer) -> None:
    files = {"audio_file": ("in.wav", wav(), "audio/wav")}
    answer = live_server.post("/generate", files=files, data={"genre": "rock", "audio2audio_enable": "true"})
    assert answer.status_code == 200, answer.text
    (submission,) = live_server.jobs.submissions.values()
    assert submission.songs[0].task == "audio2audio"
