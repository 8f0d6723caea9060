"""Files that the published pipeline writes beside its songs are requests here, and ours can be loaded there."""

import json
from typing import Any

import pytest

from tests.clients.conftest import LiveServer

# As the published pipeline writes it for a song of words, with what it writes of every other task.
TEXT2MUSIC: dict[str, Any] = {
    "lora_name_or_path": "none",
    "lora_weight": 1,
    "task": "text2music",
    "prompt": "funk, pop, soul",
    "lyrics": "[verse]\nNeon lights they flicker bright",
    "audio_duration": 12.5,
    "infer_step": 27,
    "guidance_scale": 15,
    "scheduler_type": "euler",
    "cfg_type": "apg",
    "omega_scale": 10,
    "guidance_interval": 0.5,
    "guidance_interval_decay": 0,
    "min_guidance_scale": 3,
    "use_erg_tag": True,
    "use_erg_lyric": False,
    "use_erg_diffusion": True,
    "oss_steps": [],
    "timecosts": {"preprocess": 0.05, "diffusion": 12.6, "latent2audio": 1.6},
    "actual_seeds": [3299954530, 7],
    "retake_seeds": [2853294206, 8],
    "retake_variance": 0.5,
    "guidance_scale_text": 0,
    "guidance_scale_lyric": 0,
    "repaint_start": 0,
    "repaint_end": 0,
    "edit_n_min": 0.0,
    "edit_n_max": 1.0,
    "edit_n_avg": 1,
    "src_audio_path": None,
    "edit_target_prompt": None,
    "edit_target_lyrics": None,
    "audio2audio_enable": False,
    "ref_audio_strength": 0.5,
    "ref_audio_input": None,
    "audio_path": "./outputs/output_20250506144125_0.wav",
}


def test_a_published_file_makes_its_song_again(live_server: LiveServer) -> None:
    answer = live_server.post("/generate_music", json=TEXT2MUSIC)
    assert answer.status_code == 200, answer.text
    (submission,) = live_server.jobs.submissions.values()
    song = submission.songs[0]
    assert (song.seed, song.duration_s, song.steps, song.oss_steps) == (3299954530, 12.5, 27, ())
    assert answer.json()["ignored_fields"] == ["timecosts", "audio_path", "retake_seeds"]


def test_a_published_retake_keeps_its_seeds_of_both_kinds(live_server: LiveServer) -> None:
    live_server.post("/generate_music", json=TEXT2MUSIC | {"task": "retake", "retake_variance": 0.3})
    (submission,) = live_server.jobs.submissions.values()
    song = submission.songs[0]
    assert (song.seed, song.retake_seed, song.retake_variance) == (3299954530, 2853294206, 0.3)


def test_a_published_extension_is_the_seconds_of_its_range_past_the_ends(live_server: LiveServer) -> None:
    earlier = live_server.song()
    published = TEXT2MUSIC | {"task": "extend", "audio_duration": 20, "repaint_start": -2, "repaint_end": 23}
    answer = live_server.post("/generate_music", json=published | {"source_request_id": earlier})
    assert answer.status_code == 200, answer.text
    song = [*live_server.jobs.submissions.values()][-1].songs[0]
    assert (song.left_extend_s, song.right_extend_s) == (2.0, 3.0)


def test_a_source_on_another_machine_is_asked_for(live_server: LiveServer) -> None:
    published = TEXT2MUSIC | {"task": "repaint", "repaint_end": 5, "src_audio_path": "/tmp/gradio/song.wav"}
    answer = live_server.post("/generate_music", json=published)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "src_audio"


def test_a_seed_that_contradicts_the_file_is_refused_and_both_names_are_told(live_server: LiveServer) -> None:
    answer = live_server.post("/generate_music", json=TEXT2MUSIC | {"manual_seeds": 5})
    assert answer.status_code == 422
    (problem,) = answer.json()["errors"]
    assert {problem["field"], "actual_seeds", "manual_seeds"} <= {"actual_seeds", "manual_seeds"}
    assert "another name of it" in problem["problem"]


@pytest.mark.parametrize("fields", [{}, {"oss_steps": [1, 5]}, {"batch_size": 2, "manual_seeds": [5, 6]}])
def test_our_parameters_have_what_the_published_interface_reads(
    live_server: LiveServer, fields: dict[str, Any]
) -> None:
    made = live_server.post("/generate_music", json={"prompt": "piano", "audio_duration": 10} | fields).json()
    params = json.loads(json.dumps(made["params_json"]))
    seeds = [output["seed"] for output in made["outputs"]]
    assert params["actual_seeds"] == seeds
    assert ", ".join(map(str, params["oss_steps"])) == ", ".join(map(str, fields.get("oss_steps", [])))
    assert params["audio_path"] == made["audio_path"]
    assert set(params["timecosts"]) <= {"preprocess", "diffusion", "latent2audio"}
    again = live_server.post("/generate_music", json=params)
    assert again.status_code == 200, again.text
    assert [output["seed"] for output in again.json()["outputs"]] == seeds
