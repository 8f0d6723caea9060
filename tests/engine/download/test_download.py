"""Downloading the checkpoint, from a small hub on this machine: what arrives, in parts, once."""

import hashlib
import logging
import subprocess
import sys
import threading
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace as changed
from pathlib import Path

import huggingface_hub
import pytest

from acestep_engine.checkpoint import LYRIC_VOCABULARY, missing_parts
from acestep_engine.download import REPOSITORY, WORK_FOLDER, download_checkpoint, ensure_checkpoint
from acestep_engine.errors import CheckpointNotFoundError
from tests.engine.download.asking import contents, refused
from tests.engine.download.hub import (
    COMMIT,
    COMPLETE,
    CONFIG,
    LISTING,
    PUBLISHED,
    WEIGHTS,
    Hub,
    content_of,
    resolved,
)


def test_a_download_gives_exactly_the_files_of_the_four_components_and_happens_once(hub: Hub, folder: Path) -> None:
    ensure_checkpoint(folder, download=True, source=hub.source())

    assert contents(folder) == COMPLETE
    assert missing_parts(folder) == []
    assert [file.name for file in (folder / WORK_FOLDER).iterdir()] == ["lock"]

    hub.requests.clear()
    ensure_checkpoint(folder, download=True, source=hub.source())
    ensure_checkpoint(folder, download=False)
    assert hub.requests == []


def test_the_test_hub_answers_as_the_hub_library_expects(hub: Hub, tmp_path: Path) -> None:
    api = huggingface_hub.HfApi(endpoint=hub.source().endpoint, token=False)
    info = api.model_info(REPOSITORY, files_metadata=True)
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    lfs = siblings[WEIGHTS].lfs

    assert info.sha == COMMIT
    assert lfs is not None
    assert lfs.sha256 == hashlib.sha256(PUBLISHED[WEIGHTS]).hexdigest()
    assert siblings[CONFIG].size == len(PUBLISHED[CONFIG])
    for path in (WEIGHTS, CONFIG):
        file = api.hf_hub_download(REPOSITORY, path, revision=COMMIT, local_dir=tmp_path, cache_dir=tmp_path / "cache")
        assert Path(file).read_bytes() == PUBLISHED[path]


def test_pickles_and_whatever_else_the_hub_has_are_never_asked_for(hub: Hub, folder: Path) -> None:
    download_checkpoint(folder, source=hub.source())

    asked = Counter(request.path for request in hub.requests)
    files = [resolved(path) for path in PUBLISHED]
    storage = [f"/storage/{path}" for path in PUBLISHED if path.endswith(".safetensors")]
    assert asked == Counter([LISTING, "/raw/vocab.json", *files, *storage])


def test_without_leave_to_download_the_error_says_what_is_missing_and_what_to_do(folder: Path) -> None:
    with pytest.raises(CheckpointNotFoundError) as caught:
        ensure_checkpoint(folder, download=False)

    assert "umt5-base/config.json, umt5-base/*.safetensors" in str(caught.value)
    assert LYRIC_VOCABULARY in str(caught.value)
    assert "`acestep-serve download`" in str(caught.value)
    assert "`download: true`" in str(caught.value)
    assert not folder.exists()


def test_after_a_cut_the_next_call_asks_only_for_the_rest(hub: Hub, folder: Path) -> None:
    hub.cuts[WEIGHTS] = [150_000]

    sentence = refused(folder, hub.source())
    assert f"localhost:{hub.port} did not send {WEIGHTS}" in sentence
    assert "`acestep-serve download`" in sentence
    assert not (folder / WEIGHTS).exists()
    hub.requests.clear()
    ensure_checkpoint(folder, download=True, source=hub.source())

    assert {request.range for request in hub.of(WEIGHTS)} == {"bytes=150000-"}
    assert hub.of(CONFIG) == []  # it came before the cut
    assert contents(folder) == COMPLETE


def test_one_call_goes_on_after_every_cut_as_long_as_bytes_arrive(
    hub: Hub, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.cuts[WEIGHTS] = [100_000, 250_000]

    download_checkpoint(folder, source=changed(hub.source(), waits_s=(0.0,)))

    ranges = [request.range for request in hub.requests if request.path == f"/storage/{WEIGHTS}"]
    assert ranges == [None, "bytes=100000-", "bytes=250000-"]
    assert contents(folder) == COMPLETE
    assert sum("trying again" in message for message in caplog.messages) == 2


def test_a_server_without_ranges_sends_the_whole_file_and_the_part_starts_again(hub: Hub, folder: Path) -> None:
    hub.cuts[WEIGHTS] = [150_000] * 9
    hub.understands_ranges = False
    refused(folder, changed(hub.source(), waits_s=(0.0, 0.0)))
    assert len(hub.cuts[WEIGHTS]) == 9 - 3  # bytes that were there before do not count as progress

    hub.cuts.clear()
    download_checkpoint(folder, source=hub.source())

    assert contents(folder) == COMPLETE


def test_a_range_that_was_not_asked_for_never_reaches_its_place(hub: Hub, folder: Path) -> None:
    hub.cuts[WEIGHTS] = [150_000]
    refused(folder, hub.source())
    hub.range_shift = 1

    refused(folder, hub.source())

    assert not (folder / WEIGHTS).exists()
    hub.range_shift = 0
    download_checkpoint(folder, source=hub.source())
    assert contents(folder) == COMPLETE


def test_a_part_of_another_revision_is_not_continued_and_is_cleared_away(hub: Hub, folder: Path) -> None:
    hub.cuts[WEIGHTS] = [150_000]
    refused(folder, hub.source())
    hub.files[WEIGHTS] = content_of("a push in between", 400_000)
    hub.requests.clear()

    download_checkpoint(folder, source=hub.source())

    assert {request.range for request in hub.of(WEIGHTS)} == {None}
    assert contents(folder) == COMPLETE | {WEIGHTS: hub.files[WEIGHTS]}
    assert list((folder / WORK_FOLDER).glob("*.part")) == []


@pytest.mark.parametrize("path", [WEIGHTS, CONFIG])
@pytest.mark.parametrize(("kept", "added"), [(-1, b"?"), (None, b"?"), (-1, b"")], ids=["changed", "long", "short"])
def test_a_file_that_is_not_what_the_hub_lists_is_removed_and_named(
    hub: Hub, folder: Path, path: str, kept: int | None, added: bytes
) -> None:
    hub.served[path] = PUBLISHED[path][:kept] + added

    assert f"{path} is not what was published" in refused(folder, hub.source())
    assert not (folder / path).exists()

    hub.served.clear()
    download_checkpoint(folder, source=hub.source())
    assert contents(folder) == COMPLETE


def test_a_file_that_was_damaged_on_disk_is_replaced(hub: Hub, folder: Path) -> None:
    download_checkpoint(folder, source=hub.source())
    (folder / WEIGHTS).write_bytes(PUBLISHED[WEIGHTS][:-1] + b"?")
    hub.requests.clear()

    download_checkpoint(folder, source=hub.source())

    assert {path for path in PUBLISHED if hub.of(path)} == {WEIGHTS}
    assert contents(folder) == COMPLETE


def test_a_repair_that_fails_leaves_a_folder_that_does_not_pass_for_complete(hub: Hub, folder: Path) -> None:
    download_checkpoint(folder, source=hub.source())
    (folder / WEIGHTS).unlink()
    hub.cuts[WEIGHTS] = [10]

    refused(folder, hub.source())

    assert missing_parts(folder) == ["ace_step_transformer/*.safetensors", LYRIC_VOCABULARY]
    hub.requests.clear()
    ensure_checkpoint(folder, download=True, source=hub.source())
    assert "/raw/vocab.json" not in {request.path for request in hub.requests}
    assert contents(folder) == COMPLETE


def test_the_log_tells_the_total_each_file_and_its_progress(
    hub: Hub, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acestep_engine.hub.LOG_EVERY_S", 0.0)
    with caplog.at_level(logging.INFO, "acestep_engine"):
        download_checkpoint(folder, source=hub.source())

    assert "9 of 9 files to fetch, 0.4 MB, to" in caplog.text
    assert all(f"{path}: " in caplog.text for path in PUBLISHED)
    assert f"{WEIGHTS}: 100 % of 0.4 MB, " in caplog.text
    assert "is complete" in caplog.text


def test_of_two_processes_that_ask_at_once_one_downloads_and_the_other_waits(hub: Hub, folder: Path) -> None:
    hub.gate = threading.Event()
    script = (
        "import logging, sys; from pathlib import Path; from acestep_engine import download\n"
        "logging.basicConfig(level=logging.INFO)\n"
        f"download.ensure_checkpoint(Path({str(folder)!r}), download=True, source=download.{hub.source()!r})"
    )
    command = [sys.executable, "-W", "error", "-c", script]
    with ExitStack() as stack:
        first = stack.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        stack.callback(hub.gate.set)
        assert hub.asked_for_a_file.wait(60)
        second = stack.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        assert second.stderr is not None
        line = second.stderr.readline()
        hub.gate.set()
        first_log, second_log = first.communicate()[1], second.communicate()[1]

    assert "another process downloads" in line
    assert (first.returncode, second.returncode) == (0, 0), first_log + second_log
    assert contents(folder) == COMPLETE
    assert set(Counter(request.path for request in hub.requests).values()) == {1}


def test_of_threads_that_ask_at_once_one_downloads(hub: Hub, folder: Path) -> None:
    def ask() -> None:
        ensure_checkpoint(folder, download=True, source=hub.source())

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert contents(folder) == COMPLETE
    assert set(Counter(request.path for request in hub.requests).values()) == {1}
