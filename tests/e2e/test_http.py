"""The server as its clients meet it: `acestep-serve` in its own process, and what the users' documents say to do."""

import base64
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import soundfile

from tests.e2e.server import Server
from tests.engine.recordings import recording

pytestmark = pytest.mark.cluster

QUICK = {"audio_duration": 2.0, "infer_step": 4, "manual_seeds": 11}


def audio_of(response: requests.Response) -> np.ndarray[Any, Any]:
    assert response.status_code == 200, response.text
    assert int(response.headers["Content-Length"]) == len(response.content)
    samples, rate_hz = soundfile.read(io.BytesIO(response.content))
    assert rate_hz == 48_000
    assert samples.shape[1] == 2
    return samples  # type: ignore[no-any-return]


def test_health_says_what_model_on_what_and_how_many_replicas(server: Server) -> None:
    health = server.get("/health").json()
    assert health["status"] == "healthy"
    assert health["pipeline_loaded"] is True
    assert (health["model"], health["replicas"]) == ("nano", 1)
    assert "no voices" in health["notice"]


def test_the_gradio_guides_client_gets_a_path_to_its_song(server: Server) -> None:
    request = {"prompt": "jazz piano, smooth, relaxing", "audio_duration": 2.0, "infer_step": 4, "guidance_scale": 15.0}
    result = server.post("/generate_music", json=request).json()
    assert result["success"]
    saved = Path(result["audio_path"])
    assert saved.is_file()
    assert saved.name.startswith("output_")
    params = json.loads(saved.with_name(f"{saved.stem}_input_params.json").read_text())
    assert params == result["params_json"]


def test_the_async_guides_client_polls_and_fetches_its_song(server: Server) -> None:
    request = {"format": "mp3", "audio_duration": 2.0, "prompt": "jazz piano, smooth", "infer_step": 4}
    request_id = server.post("/generate_music_async", json=request).json()["request_id"]
    assert server.until_ended(request_id)["status"] == "completed"
    result = server.get(f"/result/{request_id}")
    assert result.headers["Content-Type"] == "audio/mpeg"
    assert result.headers["X-Request-ID"] == request_id
    assert len(audio_of(result)) == pytest.approx(2 * 48_000, abs=6_000)


def test_the_direct_guides_upload_makes_a_remix(server: Server) -> None:
    source = server.post("/generate_music_direct", json=QUICK | {"format": "mp3"}).content
    before = list(server.outputs.glob("*"))
    form = {"audio_duration": "2.0", "prompt": "jazz fusion remix", "infer_step": "4"}
    remix = server.post("/generate_music_with_audio_direct_mp3", files={"audio_file": ("input.mp3", source)}, data=form)
    assert remix.headers["Content-Type"] == "audio/mpeg"
    audio_of(remix)
    assert list(server.outputs.glob("*")) == before


@pytest.mark.parametrize(
    ("audio_format", "media_type"),
    [
        ("wav", "audio/wav"),
        ("mp3", "audio/mpeg"),
        ("ogg", "audio/ogg"),
        ("flac", "audio/flac"),
        ("opus", "audio/ogg; codecs=opus"),
    ],
)
def test_every_format_has_its_media_type_and_name(server: Server, audio_format: str, media_type: str) -> None:
    response = server.post("/generate_music_direct", json=QUICK | {"format": audio_format})
    assert response.headers["Content-Type"] == media_type
    assert response.headers["Content-Disposition"].endswith(f'.{audio_format}"')
    assert response.headers["X-Seed"] == "11"
    assert response.headers["X-Model"] == "nano"
    audio_of(response)


def test_the_params_of_an_answer_make_the_same_bytes_again(server: Server) -> None:
    request = {"audio_duration": 2.0, "infer_step": 4, "lyrics": "[verse]\nslow river"}  # the seed is drawn
    first = server.post("/generate_music", json=request).json()
    again = server.post("/generate_music_direct", json=first["params_json"])
    assert again.content == Path(first["audio_path"]).read_bytes()


SHORT = {"infer_step": 4, "manual_seeds": 11, "retake_seeds": 5}
TASKS: list[dict[str, Any]] = [
    {"task": "audio2audio", "infer_step": 4, "manual_seeds": 5},
    {"task": "repaint", "repaint_start": 0.5, "repaint_end": 1.0, **SHORT},
    {"task": "extend", "left_extend_length": 0.5, "right_extend_length": 0.5, **SHORT},
    {"task": "edit", "edit_target_prompt": "drums", **SHORT},
]


@pytest.mark.parametrize("asked", TASKS, ids=lambda asked: asked["task"])
def test_every_task_makes_the_same_bytes_again_of_every_kind_of_source(server: Server, asked: dict[str, Any]) -> None:
    first = server.post("/generate_music", json=QUICK).json()
    song = Path(first["audio_path"]).read_bytes()
    form = {name: str(value) for name, value in asked.items()}
    text = base64.b64encode(song).decode()
    of_job = server.post("/generate_music", json=asked | {"source_request_id": first["request_id"]})
    of_file = server.post("/generate_music", data=form, files={"audio_file": ("song.wav", song)})
    queued = server.post("/generate_music_with_audio_base64", data=form | {"audio_base64": text}).json()
    assert server.until_ended(queued["request_id"])["status"] == "completed"
    for made in (of_job, of_file):
        assert made.status_code == 200, made.text
        again = server.post("/generate_music_direct", json=made.json()["params_json"])
        assert again.content == Path(made.json()["audio_path"]).read_bytes()
    assert server.get(f"/result/{queued['request_id']}").content == Path(of_file.json()["audio_path"]).read_bytes()


@pytest.mark.parametrize("kind", ["m4a", "webm of opus"])
def test_what_phones_and_browsers_record_makes_a_song(server: Server, kind: str) -> None:
    pytest.importorskip("av")
    form = {"task": "audio2audio", "infer_step": "4", "format": "wav32"}
    made = server.post("/generate_music_direct", data=form, files={"audio_file": recording(kind)})
    assert len(audio_of(made)) == pytest.approx(2 * 48_000, abs=6_000)


def test_a_retake_of_an_earlier_song_is_another_take_of_it(server: Server) -> None:
    first = server.post("/generate_music", json=QUICK).json()
    of_first = {"task": "retake", "source_request_id": first["request_id"], "infer_step": 4}
    same = server.post("/generate_music_direct", json=of_first | {"retake_variance": 0})
    np.testing.assert_allclose(audio_of(same), soundfile.read(first["audio_path"])[0], atol=2e-3)
    other = server.post("/generate_music", json=of_first).json()
    assert Path(other["audio_path"]).read_bytes() != same.content
    again = server.post("/generate_music_direct", json=other["params_json"])
    assert again.content == Path(other["audio_path"]).read_bytes()


def test_a_chain_of_extensions_keeps_what_was_there(server: Server) -> None:
    made = server.post("/generate_music", json=QUICK | {"audio_duration": 1.0}).json()
    first, _ = soundfile.read(made["audio_path"])
    for link in range(10):
        side = "left_extend_length" if link % 2 else "right_extend_length"
        extension = {"task": "extend", side: 0.5, "source_request_id": made["request_id"], **SHORT}
        made = server.post("/generate_music", json=extension).json()
    last, _ = soundfile.read(made["audio_path"])
    assert len(last) == pytest.approx(len(first) + 10 * 0.5 * 48_000, rel=0.1)
    retold = server.post("/generate_music_direct", json=made["params_json"])
    np.testing.assert_array_equal(audio_of(retold), last)


def test_the_songs_of_a_batch_come_alone_and_in_a_zip(server: Server) -> None:
    batch = server.post("/generate_music", json=QUICK | {"batch_size": 2, "manual_seeds": "11,12"}).json()
    zipped = server.get(f"/result/{batch['request_id']}?format=zip")
    with zipfile.ZipFile(io.BytesIO(zipped.content)) as archive:
        songs = [archive.read(name) for name in archive.namelist() if name.endswith(".wav")]
    assert [Path(output["audio_path"]).read_bytes() for output in batch["outputs"]] == songs
    for output, song in zip(batch["outputs"], songs, strict=True):
        assert server.get(output["audio_url"]).content == song
        alone = server.post("/generate_music_direct", json=QUICK | {"manual_seeds": output["seed"]})
        np.testing.assert_allclose(soundfile.read(io.BytesIO(song))[0], audio_of(alone), atol=2e-3)


def test_lyrics_are_read_line_by_line(server: Server) -> None:
    read = server.post("/lyrics/tokens", json={"lyrics": "[verse]\n[lang:de] 3 Rosen"}).json()
    assert [line["spelling"] for line in read["lines"]] == ["[verse]", "drei rosen"]


def test_a_part_of_a_result_can_be_fetched(server: Server) -> None:
    request_id = server.post("/generate_music", json=QUICK).json()["request_id"]
    whole = server.get(f"/result/{request_id}").content
    part = server.get(f"/result/{request_id}", headers={"Range": "bytes=100-199"})
    assert part.status_code == 206
    assert part.content == whole[100:200]


def test_a_running_song_is_cancelled_and_the_next_one_runs(server: Server) -> None:
    long = {"audio_duration": 240, "infer_step": 200}
    running, waiting = (server.post("/generate_music_async", json=long).json()["request_id"] for _ in range(2))
    for request_id in (waiting, running):
        assert requests.delete(f"{server.url}/request/{request_id}", timeout=30).status_code == 200
        status = server.get(f"/status/{request_id}").json()
        assert (status["status"], status["outcome"], status["error"]) == ("failed", "cancelled", "Cancelled by user")
    audio_of(server.post("/generate_music_direct", json=QUICK))


def test_a_client_that_hangs_up_cancels_its_song(server: Server) -> None:
    with pytest.raises(requests.exceptions.ReadTimeout):
        requests.post(f"{server.url}/generate_music_direct", json={"audio_duration": 240, "infer_step": 200}, timeout=2)
    audio_of(server.post("/generate_music_direct", json=QUICK))
    assert server.get("/queue/status").json()["status_counts"]["processing"] == 0


def test_errors_are_problem_json_with_a_code(server: Server) -> None:
    response = server.post("/generate_music_direct", json={"scheduler_type": "ddim"})
    assert response.status_code == 422
    assert response.headers["Content-Type"].startswith("application/problem+json")
    problem = response.json()
    assert problem["success"] is False
    assert "euler" in problem["error_message"]
    assert problem["code"]


def test_administration_needs_the_key(server: Server) -> None:
    assert server.post("/initialize", json={"checkpoint_path": "", "bf16": True}).status_code == 200  # nothing to do
    assert server.post("/initialize", json={"cpu_offload": True}).status_code == 401
    key = {"Authorization": "Bearer secret"}
    assert server.post("/initialize", json={"checkpoint_path": "/etc"}, headers=key).status_code in (404, 422)
    answer = server.post("/initialize", json={"checkpoint_path": "", "bf16": True}, headers=key)
    assert answer.status_code == 200, answer.text
    assert answer.json()["success"] is True


@pytest.mark.parametrize("page", ["/docs", "/redoc", "/openapi.json", "/sample_data", "/queue/status"])
def test_every_page_answers(server: Server, page: str) -> None:
    assert server.get(page).status_code == 200


LONG = {"audio_duration": 120.0, "infer_step": 2, "guidance_scale": 1.0}  # decoding takes seconds


@pytest.mark.parametrize("audio_format", ["wav", "wav32", "mp3", "ogg", "opus", "flac"])
def test_a_song_is_heard_while_it_is_made_and_all_that_was_heard_is_its_file(server: Server, audio_format: str) -> None:
    song = LONG | {"format": audio_format, "stream": True}
    with server.post("/generate_music_direct", json=song, stream=True) as answer:
        request_id = answer.headers["X-Request-ID"]
        parts = answer.iter_content(chunk_size=None)
        heard = next(parts)
        assert server.get(f"/status/{request_id}").json()["progress"]["stage"] == "decoding"
        heard += b"".join(parts)
    assert heard == server.get(f"/result/{request_id}").content == server.get(f"/stream/{request_id}").content
    samples, rate_hz = soundfile.read(io.BytesIO(heard))
    assert len(samples) / rate_hz == pytest.approx(120, abs=0.1)


def test_a_song_that_ends_badly_breaks_the_connection_of_those_who_hear_it(server: Server) -> None:
    request_id = server.post("/generate_music_async", json=LONG).json()["request_id"]
    with server.get(f"/stream/{request_id}", stream=True) as answer:
        parts = answer.iter_content(chunk_size=None)
        next(parts)
        requests.delete(f"{server.url}/request/{request_id}", timeout=60).raise_for_status()
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            list(parts)


def test_a_client_that_leaves_its_stream_cancels_its_song(server: Server) -> None:
    with server.post("/generate_music_direct", json=LONG | {"stream": True}, stream=True) as answer:
        request_id = answer.headers["X-Request-ID"]
    assert server.until_ended(request_id)["outcome"] == "cancelled"


def test_a_client_that_does_not_read_holds_nobody_up(server: Server) -> None:
    with server.post("/generate_music_direct", json=LONG | {"stream": True}, stream=True) as answer:
        request_id = answer.headers["X-Request-ID"]
        audio_of(server.post("/generate_music_direct", json=QUICK))
        assert server.until_ended(request_id)["status"] == "completed"
        assert answer.content == server.get(f"/result/{request_id}").content
