"""The files of jobs."""

import dataclasses
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from safetensors.numpy import save_file

from acestep_engine.params import AudioFormat
from deployments.messages import EarlierSong, SongResult, SourceGoneError, Upload
from deployments.results import Folders, JobFiles
from deployments.store.protocol import JobRow
from tests.deployments.conftest import make_row

AUDIO = np.frombuffer(b"RIFF and so on", dtype=np.uint8)
LATENTS = np.ones((8, 16, 3), dtype=np.float32)
RESULT = SongResult("tiny", "cpu", 0.3, AUDIO.nbytes, {"diffusion_s": 1.5, "decode_s": 0.5, "write_s": 0.1})
AT = time.mktime((2026, 11, 21, 10, 30, 0, 0, 0, -1))


@pytest.fixture
def files(tmp_path: Path) -> JobFiles:
    return JobFiles(Folders(tmp_path / "state", tmp_path / "outputs", "./outputs"))


def write_song(files: JobFiles, request_id: str, index: int = 0, audio_format: AudioFormat = "wav") -> None:
    files.write_audio(request_id, index, audio_format, AUDIO)
    files.write_latents(request_id, index, LATENTS * index)


def all_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def age(path: Path) -> None:
    os.utime(path, (1_000, 1_000))


def test_each_song_of_a_job_is_read_back_and_its_latents_are_a_source(files: JobFiles) -> None:
    for index in range(2):
        write_song(files, "a", index)
    assert files.read_audio("a", 1, "wav").tobytes() == AUDIO.tobytes()
    assert np.array_equal(files.read_source(files.keep_source(EarlierSong("a", 1))), LATENTS)


def test_latents_say_in_which_space_they_lie_and_those_of_earlier_versions_say_nothing(
    files: JobFiles, tmp_path: Path
) -> None:
    files.write_latents("a", 0, LATENTS, "ab12")
    save_file({"latents": LATENTS}, tmp_path / "state/latents/b_0.safetensors")
    spaces = [files.latent_space(files.keep_source(EarlierSong(name))) for name in "ab"]
    assert spaces == ["ab12", ""]
    assert np.array_equal(files.read_source(files.keep_source(EarlierSong("a"))), LATENTS)


def test_the_latents_of_a_song_that_is_not_there_are_no_source(files: JobFiles) -> None:
    write_song(files, "a")
    with pytest.raises(SourceGoneError):
        files.keep_source(EarlierSong("a", 1))


def test_an_upload_is_kept_once_whoever_sends_it(files: JobFiles, tmp_path: Path) -> None:
    upload = Upload("5e", AUDIO)
    with ThreadPoolExecutor() as threads:
        names = set(threads.map(lambda _: files.keep_source(upload), range(8)))
    (name,) = names
    assert files.read_source(name).tobytes() == AUDIO.tobytes()
    assert all_files(tmp_path) == ["state/sources/5e"]


def test_saved_songs_have_the_documented_names_and_their_parameters_beside_them(
    files: JobFiles, tmp_path: Path
) -> None:
    songs = tuple(dataclasses.replace(make_row("a").songs[0], seed=seed) for seed in (3, 5))
    request = {"prompt": "ピアノ", "batch_size": 2, "manual_seeds": [3, 5]}
    row = make_row("a", songs=songs, request_json=request, output_paths=files.claim_outputs("flac", AT, 2))
    for index in range(2):
        write_song(files, "a", index, "flac")
    assert [files.save_song(row, index, RESULT).audio_path for index in range(2)] == [
        "./outputs/output_20261121103000_0.flac",
        "./outputs/output_20261121103000_1.flac",
    ]
    assert (tmp_path / "outputs/output_20261121103000_1.flac").read_bytes() == AUDIO.tobytes()
    parameters = (tmp_path / "outputs/output_20261121103000_1_input_params.json").read_text(encoding="utf-8")
    asked = {"prompt": "ピアノ", "batch_size": 1, "manual_seeds": 5}
    for_the_published_interface = {
        "actual_seeds": [5],
        "oss_steps": [],
        "audio_path": "./outputs/output_20261121103000_1.flac",
        "timecosts": {"diffusion": 1.5, "latent2audio": 0.5},
    }
    assert json.loads(parameters) == asked | for_the_published_interface


def test_a_file_of_floats_is_called_as_a_wav_file_is(files: JobFiles, tmp_path: Path) -> None:
    row = make_row("a", output_paths=files.claim_outputs("wav32", AT, 1), audio_format="wav32")
    write_song(files, "a", 0, "wav32")
    assert files.save_song(row, 0, RESULT).audio_path == "./outputs/output_20261121103000_0.wav"
    assert files.read_audio("a", 0, "wav32").tobytes() == AUDIO.tobytes()
    assert (tmp_path / "outputs/output_20261121103000_0_input_params.json").exists()
    assert (tmp_path / "state/results/a_0.wav").exists()
    files.discard(row)
    assert all_files(tmp_path) == []


def test_saved_songs_never_overwrite_another(files: JobFiles, tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir(exist_ok=True)
    (tmp_path / "outputs/output_20261121103000_0.wav").write_bytes(b"somebody's")
    names = [*files.claim_outputs("wav", AT, 2), *files.claim_outputs("mp3", AT, 1), *files.claim_outputs("wav", AT, 1)]
    stamps = ((1, "wav"), (2, "wav"), (0, "mp3"), (3, "wav"))
    assert names == [f"output_20261121103000_{index}.{kind}" for index, kind in stamps]
    assert (tmp_path / "outputs/output_20261121103000_0.wav").read_bytes() == b"somebody's"


def test_nothing_but_the_upload_is_left_of_a_job_that_did_not_complete(files: JobFiles, tmp_path: Path) -> None:
    song = make_row("a").songs[0]
    source = files.keep_source(Upload("5e", AUDIO))
    row = make_row("a", songs=(song, song), source=source, output_paths=files.claim_outputs("flac", AT, 2))
    for index in range(2):
        write_song(files, "a", index, "flac")
        files.save_song(row, index, RESULT)
    files.discard(row)
    assert all_files(tmp_path) == ["state/sources/5e"]


def saved(files: JobFiles, folder: Path) -> tuple[JobRow, SongResult, Path]:
    """A song that is kept and saved, and its saved file."""
    write_song(files, "song")
    row = replace(make_row("song", audio_format="wav"), output_paths=files.claim_outputs("wav", 1e9, 1))
    result = files.save_song(row, 0, replace(RESULT, audio_bytes=AUDIO.nbytes))
    return row, result, folder / row.output_paths[0]


def read_back(files: JobFiles, result: SongResult) -> bytes:
    return files.read_audio("song", 0, "wav", result=result).tobytes()


def test_a_saved_song_takes_its_room_on_the_disk_once_however_often_it_is_saved(
    files: JobFiles, tmp_path: Path
) -> None:
    row, result, output = saved(files, tmp_path / "outputs")
    assert output.samefile(tmp_path / "state/results/song_0.wav")
    assert files.save_song(row, 0, result) == result  # as after a restart
    assert output.read_bytes() == read_back(files, result) == AUDIO.tobytes()
    assert not [name for name in all_files(tmp_path) if name.endswith(".tmp")]
    assert [one.freed_bytes < one.nbytes for one in files.kept()] == [True]
    files.discard(replace(row, output_paths=()))
    assert output.read_bytes() == AUDIO.tobytes()


def test_a_song_is_copied_to_another_disk(tmp_path: Path) -> None:
    shared_memory = Path("/dev/shm")
    if not shared_memory.is_dir() or shared_memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is one file system only")
    with TemporaryDirectory(dir=shared_memory) as folder:
        files = JobFiles(Folders(tmp_path / "state", Path(folder), "./outputs"))
        _, result, output = saved(files, Path(folder))
        assert (output.read_bytes(), result.shared_mtime) == (AUDIO.tobytes(), 0.0)
        output.write_bytes(b"edited")
        assert read_back(files, result) == AUDIO.tobytes()


@pytest.mark.parametrize("edit", [b"other audio of another length", bytes(AUDIO.nbytes)])
def test_a_saved_song_that_is_edited_in_place_is_never_passed_off_as_the_one_that_was_made(
    files: JobFiles, tmp_path: Path, edit: bytes
) -> None:
    _, result, output = saved(files, tmp_path / "outputs")
    made_at = output.stat().st_mtime
    output.write_bytes(edit)
    os.utime(output, (made_at + 60, made_at + 60))
    with pytest.raises(FileNotFoundError, match="edited"):
        read_back(files, result)
    assert output.read_bytes() == edit


def test_a_saved_song_that_is_replaced_or_removed_leaves_the_kept_one_alone(files: JobFiles, tmp_path: Path) -> None:
    _, result, output = saved(files, tmp_path / "outputs")
    (tmp_path / "new").write_bytes(b"edited")
    (tmp_path / "new").replace(output)  # as most editors save
    assert read_back(files, result) == AUDIO.tobytes()
    output.unlink()
    assert read_back(files, result) == AUDIO.tobytes()


def test_old_results_are_removed_and_new_ones_stay(files: JobFiles, tmp_path: Path) -> None:
    for request_id in ("old", "new"):
        write_song(files, request_id)
    for path in tmp_path.rglob("old_*"):
        age(path)
    files.remove_old(2_000, frozenset())
    assert all_files(tmp_path) == ["state/latents/new_0.safetensors", "state/results/new_0.wav"]


def test_sources_stay_for_a_time_after_their_last_use_and_as_long_as_a_job_needs_them(
    files: JobFiles, tmp_path: Path
) -> None:
    write_song(files, "song")
    names = [files.keep_source(Upload(digest, AUDIO)) for digest in ("forgotten", "needed", "used", "sent-again")]
    names.append(files.keep_source(EarlierSong("song", 0)))
    for name in names:
        age(tmp_path / "state" / name)
    assert files.use_source("sources/used")
    files.keep_source(Upload("sent-again", AUDIO))
    files.keep_source(EarlierSong("song", 0))
    files.remove_old(2_000, {"sources/needed"})
    assert all_files(tmp_path / "state/sources") == ["needed", "sent-again", "used"]
    assert all_files(tmp_path / "state/latents") == ["song_0.safetensors"]
    assert not files.use_source("sources/forgotten")


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
        files.keep_source(Upload("a", AUDIO))
    assert all_files(tmp_path) == []
