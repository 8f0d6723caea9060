"""The files of jobs."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from acestep_engine.params import AudioFormat
from deployments.results import Folders, JobFiles
from tests.deployments.conftest import make_row

AUDIO = np.frombuffer(b"RIFF and so on", dtype=np.uint8)
LATENTS = np.ones((8, 16, 3), dtype=np.float32)
AT = time.mktime((2026, 11, 21, 10, 30, 0, 0, 0, -1))


@pytest.fixture
def files(tmp_path: Path) -> JobFiles:
    return JobFiles(Folders(tmp_path / "state", tmp_path / "outputs", "./outputs"))


def write_result(files: JobFiles, request_id: str, audio_format: AudioFormat = "wav") -> None:
    files.write_audio(request_id, audio_format, AUDIO)
    files.write_latents(request_id, LATENTS)


def all_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_result_is_read_back_with_its_latents_beside_it(files: JobFiles, tmp_path: Path) -> None:
    write_result(files, "a")
    assert files.read_result("a", "wav").tobytes() == AUDIO.tobytes()
    assert np.array_equal(load_file(tmp_path / "state/latents/a.safetensors")["latents"], LATENTS)


def test_a_source_is_kept_until_it_is_removed(files: JobFiles) -> None:
    files.write_source("a", AUDIO)
    assert files.read_source("a").tobytes() == AUDIO.tobytes()
    files.remove_source("a")
    files.remove_source("a")
    with pytest.raises(FileNotFoundError):
        files.read_source("a")


def test_a_saved_song_has_the_documented_name_and_its_parameters_beside_it(files: JobFiles, tmp_path: Path) -> None:
    name = files.claim_output("wav", AT)
    shown = files.write_output(name, AUDIO, {"prompt": "ピアノ"})
    assert shown == "./outputs/output_20261121103000_0.wav"
    assert (tmp_path / "outputs/output_20261121103000_0.wav").read_bytes() == AUDIO.tobytes()
    parameters = (tmp_path / "outputs/output_20261121103000_0_input_params.json").read_text(encoding="utf-8")
    assert json.loads(parameters) == {"prompt": "ピアノ"}


def test_a_saved_song_never_overwrites_another(files: JobFiles, tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir(exist_ok=True)
    (tmp_path / "outputs/output_20261121103000_0.wav").write_bytes(b"somebody's")
    names = [files.claim_output("wav", AT), files.claim_output("mp3", AT), files.claim_output("wav", AT)]
    assert names == [f"output_20261121103000_{i}.{kind}" for i, kind in ((1, "wav"), (0, "mp3"), (2, "wav"))]
    assert (tmp_path / "outputs/output_20261121103000_0.wav").read_bytes() == b"somebody's"


def test_nothing_is_left_of_a_job_that_did_not_complete(files: JobFiles, tmp_path: Path) -> None:
    name = files.claim_output("wav", AT)
    files.write_source("a", AUDIO)
    write_result(files, "a", "flac")
    files.write_output(name, AUDIO, {})
    files.discard(make_row("a", output_path=name))
    assert all_files(tmp_path) == []


def test_old_results_are_removed_and_new_ones_stay(files: JobFiles, tmp_path: Path) -> None:
    for request_id in ("old", "new"):
        write_result(files, request_id)
    for path in tmp_path.rglob("old.*"):
        os.utime(path, (1_000, 1_000))
    files.remove_results(written_before=2_000)
    assert all_files(tmp_path) == ["state/latents/new.safetensors", "state/results/new.wav"]


def test_sources_of_jobs_that_ended_are_removed(files: JobFiles, tmp_path: Path) -> None:
    for request_id in ("ended", "waits"):
        files.write_source(request_id, AUDIO)
    files.remove_sources_except({"waits"})
    assert all_files(tmp_path) == ["state/sources/waits"]


def test_half_written_files_of_a_dead_process_are_removed_at_start(tmp_path: Path) -> None:
    folders = Folders(tmp_path / "state", tmp_path / "outputs", "./outputs")
    JobFiles(folders)
    (tmp_path / "outputs").mkdir(exist_ok=True)
    for folder in ("state/results", "outputs"):
        (tmp_path / folder / ".a.wav.x1y2.tmp").write_bytes(b"half")
    JobFiles(folders)
    assert all_files(tmp_path) == []


def test_a_write_that_fails_leaves_nothing_behind(
    files: JobFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        files.write_source("a", AUDIO)
    assert all_files(tmp_path) == []
