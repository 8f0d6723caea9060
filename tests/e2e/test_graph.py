"""The deployments together, with the real nano engine: from submission to result, and when processes die."""

import dataclasses
import io
import time
import uuid

import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file

from acestep_engine.errors import ParameterError
from acestep_engine.requests import Latents
from deployments.messages import (
    EarlierSong,
    JobEndedError,
    JobFailedError,
    JobNotEndedError,
    JobNotFoundError,
    ModelUnavailableError,
    QueueFullError,
    Upload,
)
from tests.e2e.conftest import LONG_SONG, SLOW_SONG, SONG, Graph

pytestmark = pytest.mark.cluster


def files_of(graph: Graph, request_id: str) -> list[str]:
    return [path.name for path in graph.state.rglob(f"*{request_id}*")]


def test_a_job_runs_to_its_end_and_its_song_can_be_heard(graph: Graph) -> None:
    request_id = graph.submit()
    view = graph.end_of(request_id)
    assert (view.status, view.outcome, view.songs[0].seed, view.error) == ("completed", "completed", 7, None)
    (result,) = view.results
    assert (result.model, result.device) == ("nano", "cpu")
    samples, rate = soundfile.read(io.BytesIO(graph.audio_of(request_id)))
    assert rate == 48_000
    assert samples.shape == (round(result.duration_s * rate), 2)


def test_the_same_job_twice_is_the_same_song(graph: Graph) -> None:
    first, second = graph.submit(), graph.submit()
    graph.end_of(first)
    graph.end_of(second)
    assert graph.audio_of(first) == graph.audio_of(second)


def test_a_job_that_saves_its_file_says_where(graph: Graph) -> None:
    request_id = graph.submit(save_file=True)
    (result,) = graph.end_of(request_id).results
    assert result.audio_path is not None
    saved = graph.outputs / result.audio_path.rpartition("/")[2]
    assert saved.read_bytes() == graph.audio_of(request_id)
    assert (graph.outputs / f"{saved.stem}_input_params.json").is_file()


def test_an_uploaded_source_is_sung_from_and_kept_with_the_song(graph: Graph) -> None:
    first = graph.submit()
    graph.end_of(first)
    song = dataclasses.replace(SONG, task="audio2audio")
    source = Upload("5e" * 32, np.frombuffer(graph.audio_of(first), dtype=np.uint8))
    request_id = graph.submit(song, source=source)
    assert graph.end_of(request_id).outcome == "completed"
    assert graph.audio_of(request_id) != graph.audio_of(first)
    assert (graph.state / "sources" / source.digest).read_bytes() == graph.audio_of(first)


def test_each_song_of_a_job_is_the_one_that_its_seed_makes_alone(graph: Graph) -> None:
    songs = tuple(dataclasses.replace(SONG, seed=seed, guidance_scale=15.0) for seed in (7, 8, 9))
    together = graph.submit(*songs)
    assert graph.end_of(together).outcome == "completed"
    for index, song in enumerate(songs):
        alone = graph.submit(song)
        graph.end_of(alone)
        expected, _ = soundfile.read(io.BytesIO(graph.audio_of(alone)))
        found, _ = soundfile.read(io.BytesIO(graph.call("result", together, index).audio.tobytes()))
        np.testing.assert_allclose(found, expected, atol=2e-3)


def test_an_unknown_job_is_not_found(graph: Graph) -> None:
    for method, arguments in (("status", ()), ("wait", (1.0,)), ("result", ()), ("cancel", ())):
        with pytest.raises(JobNotFoundError):
            graph.call(method, uuid.uuid4().hex, *arguments)


def test_a_running_job_is_cancelled_at_once_and_the_next_one_runs(graph: Graph) -> None:
    running, waiting, never = graph.submit(SLOW_SONG), graph.submit(), graph.submit(SLOW_SONG)
    graph.until_running(running)
    assert graph.call("status", waiting).position == 0
    assert graph.call("status", never).position == 1
    with pytest.raises(JobNotEndedError):
        graph.call("result", running)
    assert graph.call("cancel", never).outcome == "cancelled"

    started = time.monotonic()
    view = graph.call("cancel", running)
    assert (view.status, view.outcome, view.error) == ("failed", "cancelled", "Cancelled by user")
    assert graph.end_of(waiting).outcome == "completed"
    assert time.monotonic() - started < 10
    assert graph.call("cancel", running).outcome == "cancelled"
    assert graph.call("status", never).started_at is None
    assert files_of(graph, running) == files_of(graph, never) == []
    with pytest.raises(JobFailedError):
        graph.call("result", running)
    with pytest.raises(JobEndedError):
        graph.call("cancel", waiting)


def test_a_short_song_passes_a_long_one_that_is_running(graph: Graph) -> None:
    alone = graph.submit()
    graph.end_of(alone)
    long = graph.submit(LONG_SONG)
    graph.until_running(long)
    short = graph.submit()
    assert graph.end_of(short).outcome == "completed"
    assert graph.call("status", long).status == "processing"
    assert graph.audio_of(short) == graph.audio_of(alone)
    graph.call("cancel", long)


def test_songs_of_several_sizes_share_a_replica_and_are_the_same_as_alone(graph: Graph) -> None:
    songs = [
        dataclasses.replace(SONG, duration_s=duration_s, steps=12, guidance_scale=15.0) for duration_s in (4.0, 18.0)
    ]
    alone = []
    for song in songs:
        alone.append(graph.submit(song))
        graph.end_of(alone[-1])
    together = [graph.submit(song) for song in songs]
    for one, other in zip(alone, together, strict=True):
        assert graph.end_of(other).outcome == "completed"
        expected, _ = soundfile.read(io.BytesIO(graph.audio_of(one)))
        found, _ = soundfile.read(io.BytesIO(graph.audio_of(other)))
        np.testing.assert_allclose(found, expected, atol=2e-3)


def test_a_full_queue_takes_no_more(graph: Graph) -> None:
    running = graph.submit(SLOW_SONG)
    graph.until_running(running)
    waiting = [graph.submit() for _ in range(3)]
    with pytest.raises(QueueFullError) as refused:
        graph.submit()
    assert (refused.value.waiting, refused.value.limit) == (3, 3)
    assert refused.value.retry_after_s >= 1
    assert graph.call("queue_status").queue_size == 3
    for request_id in [*waiting, running]:
        graph.call("cancel", request_id)


def test_a_request_that_cannot_be_sung_fails_with_its_sentence(graph: Graph) -> None:
    view = graph.end_of(graph.submit(dataclasses.replace(SONG, lyrics="[verse]\nla la", vocal_language="xx")))
    assert (view.outcome, view.error_code) == ("failed", "invalid_request")
    assert view.error is not None
    assert "xx" in view.error
    assert "Traceback" not in view.error


def test_lyrics_are_read_by_the_model_that_is_served(graph: Graph) -> None:
    read = graph.call("read_lyrics", "[verse]\n[lang:fr] trois roses", None)
    assert (read.model, [line.language for line in read.lines]) == ("nano", ["en", "fr"])
    with pytest.raises(ParameterError, match="klingon"):
        graph.call("read_lyrics", "la", "klingon")


def test_a_job_whose_replica_is_killed_is_made_again_and_is_the_same_song(graph: Graph) -> None:
    params = dataclasses.replace(SONG, duration_s=10.0, steps=40)
    undisturbed = graph.submit(params)
    graph.end_of(undisturbed)
    request_id = graph.submit(params)
    graph.until_running(request_id)
    graph.kill("Generator")
    view = graph.end_of(request_id)
    assert view.outcome == "completed", view.error
    assert graph.audio_of(request_id) == graph.audio_of(undisturbed)


def test_jobs_outlive_the_job_manager(graph: Graph) -> None:
    ended = graph.submit()
    graph.end_of(ended)
    running, waiting = graph.submit(), graph.submit()
    graph.kill("JobManager")
    deadline = time.monotonic() + 60
    while True:
        try:
            views = [graph.end_of(request_id) for request_id in (ended, running, waiting)]
            break
        except Exception as error:
            if time.monotonic() > deadline:
                raise AssertionError("the job manager did not come back") from error
            time.sleep(0.5)
    assert [view.outcome for view in views] == ["completed"] * 3


def test_another_model_serves_the_jobs_that_follow(graph: Graph) -> None:
    status = graph.call("initialize", "other", {"overlapped_decode": True})
    assert status.model == "other"
    assert [replica.model for replica in status.replicas] == ["other"]
    (result,) = graph.end_of(graph.submit()).results
    assert result.model == "other"
    assert graph.call("initialize", "nano", {}).model == "nano"
    assert graph.end_of(graph.submit()).results[0].model == "nano"


def test_a_model_that_cannot_be_loaded_leaves_the_old_one(graph: Graph) -> None:
    with pytest.raises(ModelUnavailableError, match="no model is called 'nobody'"):
        graph.call("initialize", "nobody", {})
    with pytest.raises(ModelUnavailableError, match="broken cannot be loaded") as refused:
        graph.call("initialize", "broken", {})
    assert str(graph.state.parent) not in str(refused.value)
    status = graph.until_status(lambda status: status.loaded)
    assert status.model == "nano"
    assert graph.end_of(graph.submit()).outcome == "completed"


def test_every_task_sings_from_an_earlier_song_and_keeps_what_it_is_not_to_change(graph: Graph) -> None:
    first = graph.submit()
    graph.end_of(first)
    source = EarlierSong(first)
    tasks = [
        dataclasses.replace(SONG, task="repaint", repaint_start_s=0.5, repaint_end_s=1.0, retake_seed=1),
        dataclasses.replace(SONG, task="extend", duration_s=3.0, right_extend_s=1.0, retake_seed=1),
        dataclasses.replace(SONG, task="edit", edit_target_prompt="drums", retake_seed=1),
        dataclasses.replace(SONG, task="audio2audio"),
    ]
    begun = [graph.submit(song, source=source) for song in tasks]
    assert [graph.end_of(request_id).outcome for request_id in begun] == ["completed"] * 4
    original, repainted, extended = (latents_of(graph, request_id) for request_id in (first, *begun[:2]))
    np.testing.assert_allclose(repainted[..., :5], original[..., :5], atol=1e-4)
    np.testing.assert_allclose(extended[..., : original.shape[-1]], original, atol=1e-4)
    assert extended.shape[-1] > original.shape[-1] + 9
    assert graph.call("source_song", begun[1], 0).duration_s == pytest.approx(3.0, abs=0.2)


def latents_of(graph: Graph, request_id: str) -> Latents:
    latents: Latents = load_file(graph.state / f"latents/{request_id}_0.safetensors")["latents"]
    return latents
