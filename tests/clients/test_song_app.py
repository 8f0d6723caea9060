"""A deployed song app, written for the earlier server: sliders, a mode without vocals, a check every five minutes."""

from typing import Any

import pytest

from tests.clients.conftest import LiveServer

# What its form sends with every song, whatever its sliders say.
ALWAYS: dict[str, Any] = {
    "format": "wav",
    "lyrics": "",
    "infer_step": 27,
    "guidance_scale": 15.0,
    "omega_scale": 10.0,
    "min_guidance_scale": 3.0,
    "guidance_interval": 0.5,
    "guidance_interval_decay": 0.0,
    "use_erg_tag": True,
    "use_erg_lyric": False,
    "use_erg_diffusion": True,
}


def test_it_is_told_that_the_service_is_initialized_and_makes_no_song_to_find_out(live_server: LiveServer) -> None:
    answer = live_server.get("/status")
    assert (answer.status_code, answer.json()["initialized"]) == (200, True)
    assert live_server.jobs.views == {}


@pytest.mark.parametrize(
    "slider",
    [
        {"guidance_scale": 1},
        {"guidance_scale": 2.0},
        {"guidance_scale": 40.0},
        {"guidance_scale": 50},
        {"guidance_scale": 200},
        {"audio_duration": 0},
        {"audio_duration": -1},
        {"audio_duration": -0.5},
    ],
)
def test_every_place_of_its_sliders_makes_a_song(live_server: LiveServer, slider: dict[str, Any]) -> None:
    answer = live_server.post("/generate_music_direct", json={"prompt": "pop"} | ALWAYS | slider)
    assert answer.status_code == 200, answer.text
    assert answer.content[:4] == b"RIFF"


def test_its_mode_without_vocals_makes_a_song_and_learns_what_meant_nothing(live_server: LiveServer) -> None:
    without_vocals = {
        "guidance_scale_text": 1.5,
        "guidance_scale_lyric": -3.0,
        "lyric_strength": 0.0,
        "vocal_suppression": True,
    }
    asked = {"prompt": "pop"} | ALWAYS | without_vocals
    answer = live_server.post("/generate_music_direct", json=asked)
    assert (answer.status_code, answer.content[:4]) == (200, b"RIFF")
    (submission,) = live_server.jobs.submissions.values()
    assert not submission.songs[0].double_guided
    queued = live_server.post("/generate_music_async", json=asked).json()
    assert queued["ignored_fields"] == ["lyric_strength", "vocal_suppression"]


def test_both_scales_over_one_guide_text_and_lyrics_apart(live_server: LiveServer) -> None:
    scales = {"guidance_scale_text": 5, "guidance_scale_lyric": 15}
    live_server.post("/generate_music_direct", json={"prompt": "pop"} | ALWAYS | scales)
    (submission,) = live_server.jobs.submissions.values()
    assert submission.songs[0].double_guided
