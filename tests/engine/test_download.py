"""Downloading the checkpoint, from a small hub on this machine."""

import hashlib
import logging
import pickle
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace as changed
from pathlib import Path

import huggingface_hub
import pytest

from acestep_engine.checkpoint import LYRIC_VOCABULARY, missing_parts
from acestep_engine.download import REPOSITORY, WORK_FOLDER, Source, download_checkpoint, ensure_checkpoint
from acestep_engine.errors import CheckpointNotFoundError, DownloadError
from tests.engine.hub import (
    COMMIT,
    COMPLETE,
    CONFIG,
    LISTING,
    PUBLISHED,
    VOCABULARY,
    WEIGHTS,
    Hub,
    content_of,
    listing_with,
    resolved,
    running_hub,
)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints" / "v1-3.5b"


def contents(folder: Path) -> dict[str, bytes]:
    """All files of the folder but those of the download's own work folder."""
    files = (file for file in folder.rglob("*") if file.is_file() and WORK_FOLDER not in file.parts)
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def refused(folder: Path, source: Source) -> str:
    """The sentence of the DownloadError, which hides the libraries' own errors and survives pickling."""
    with pytest.raises(DownloadError) as caught:
        download_checkpoint(folder, source=source)
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301  our own bytes
    assert not (folder / LYRIC_VOCABULARY).exists()
    return str(error)


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


def test_a_wrong_vocabulary_is_refused_before_gigabytes_are_fetched(hub: Hub, folder: Path) -> None:
    hub.vocabulary = b"<html>please log in</html>"

    sentence = refused(folder, hub.source())

    assert LYRIC_VOCABULARY in sentence
    assert hashlib.sha256(VOCABULARY).hexdigest() in sentence
    assert not any(hub.of(path) for path in PUBLISHED)


def test_a_vocabulary_saved_by_hand_where_the_error_says_is_used(hub: Hub, folder: Path) -> None:
    hub.statuses["/raw/vocab.json"] = [403]
    sentence = refused(folder, hub.source())
    assert f"save {hub.source().vocabulary_url} by hand as {LYRIC_VOCABULARY} in {folder}" in sentence

    (folder / LYRIC_VOCABULARY).write_bytes(VOCABULARY)
    hub.requests.clear()
    download_checkpoint(folder, source=hub.source())

    assert "/raw/vocab.json" not in {request.path for request in hub.requests}
    assert contents(folder) == COMPLETE


def test_a_machine_without_a_network_is_told_what_to_check_without_the_password_of_a_mirror(folder: Path) -> None:
    with socket.socket() as closed:  # bound, not listening: whoever connects is refused
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        sentence = refused(folder, Source(endpoint=f"http://user:password@127.0.0.1:{port}", waits_s=(0.0,)))

    assert sentence.startswith(f"127.0.0.1:{port} did not send the list of {REPOSITORY}")
    assert "password" not in sentence
    assert "check the network and the proxy, HF_ENDPOINT and HF_TOKEN, then run `acestep-serve download`" in sentence


@pytest.mark.parametrize(("status", "attempts"), [(401, 1), (404, 1), (418, 1), (408, 2), (429, 2), (503, 2)])
@pytest.mark.parametrize("path", [LISTING, resolved(CONFIG), f"/storage/{WEIGHTS}"])
def test_an_http_error_is_told_at_once_or_when_attempts_are_used_up(
    hub: Hub, folder: Path, path: str, status: int, attempts: int
) -> None:
    hub.statuses[path] = [status] * 9

    sentence = refused(folder, changed(hub.source(), waits_s=(0.0,)))

    assert sum(request.path == path for request in hub.requests) == attempts

    assert f":{hub.port} answers {status} " in sentence
    assert "check the network and the proxy, HF_ENDPOINT and HF_TOKEN, then run `acestep-serve download`" in sentence


def test_a_server_that_is_busy_for_a_while_is_asked_again(hub: Hub, folder: Path) -> None:
    hub.statuses = {LISTING: [500], "/raw/vocab.json": [502], resolved(CONFIG): [503, 429, 408]}

    download_checkpoint(folder, source=changed(hub.source(), waits_s=(0.0, 0.0, 0.0)))

    assert contents(folder) == COMPLETE


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/weights"])
def test_a_redirect_to_another_scheme_is_not_followed(hub: Hub, folder: Path, target: str) -> None:
    hub.redirect_to = target

    assert "unsupported protocol" in refused(folder, changed(hub.source(), waits_s=(1e9,)))


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"<html>please log in</html>", id="a login page"),
        pytest.param(b"\xff", id="no text"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b'{"siblings": []}', id="no commit"),
        pytest.param(listing_with(size=None), id="no size"),
        pytest.param(listing_with(blobId="../../escape"), id="a path"),
        pytest.param(listing_with(lfs={"size": 1}), id="no digest"),
    ],
)
def test_an_answer_that_no_hub_gives_is_recognised(hub: Hub, folder: Path, answer: bytes) -> None:
    hub.no_listing = answer

    assert "is not as a Hugging Face hub writes it" in refused(folder, hub.source())


def test_a_hub_that_lacks_a_part_is_refused_before_anything_is_fetched(hub: Hub, folder: Path) -> None:
    del hub.files["music_vocoder/config.json"]
    del hub.files["umt5-base/model.safetensors"]

    assert "lacks music_vocoder/config.json, umt5-base/*.safetensors" in refused(folder, hub.source())
    assert not any(hub.of(path) for path in PUBLISHED)


@pytest.mark.parametrize("endpoint", ["huggingface.co", "https://", "http://[::"])
def test_an_endpoint_that_is_no_web_address_is_told(folder: Path, endpoint: str) -> None:
    assert "HF_ENDPOINT" in refused(folder, Source(endpoint=endpoint, waits_s=()))


def test_a_token_goes_to_the_hub_but_not_to_the_storage_or_the_vocabulary(hub: Hub, folder: Path) -> None:
    download_checkpoint(folder, source=changed(hub.source(), token="hf_secret"))

    told = {request.path for request in hub.requests if request.authorization == "Bearer hf_secret"}
    others = {request.path for request in hub.requests if request.authorization is None}
    assert told == {LISTING, *map(resolved, PUBLISHED)}
    assert others == {"/raw/vocab.json", *(f"/storage/{path}" for path in PUBLISHED if path.endswith(".safetensors"))}


def test_the_environment_names_the_endpoint_and_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Source.from_environment() == Source()

    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    monkeypatch.setenv("HF_TOKEN", "hf_secret\n")
    assert Source.from_environment() == Source(endpoint="https://mirror.example", token="hf_secret")
    assert "secret" not in repr(Source.from_environment())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_ENDPOINT", "mirror.example"),
        ("HF_ENDPOINT", "file:///models"),
        ("HF_TOKEN", "hf_sécret"),
        ("HF_TOKEN", "hf_secret\nhf_secret"),
        ("HF_HUB_OFFLINE", "1"),
    ],
)
def test_an_environment_that_allows_no_download_is_told_without_the_token(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(DownloadError, match=name) as caught:
        Source.from_environment()
    assert "cret" not in str(caught.value)


def test_proxy_settings_that_cannot_be_used_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "gopher://127.0.0.1:1")

    assert "ALL_PROXY" in refused(folder, Source())


def test_too_little_disk_is_told_before_the_first_file(hub: Hub, folder: Path) -> None:
    hub.listed_sizes[WEIGHTS] = 10**18

    sentence = refused(folder, hub.source())

    assert "are still needed: make room there or set `checkpoint_dir` to another disk" in sentence
    assert not any(hub.of(path) for path in PUBLISHED)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_disk_that_fills_up_on_the_way_is_told(hub: Hub, folder: Path) -> None:
    digest = hashlib.sha256(PUBLISHED[WEIGHTS]).hexdigest()
    (folder / WORK_FOLDER).mkdir(parents=True)
    (folder / WORK_FOLDER / f"{digest}.part").symlink_to("/dev/full")

    assert "No space left on device" in refused(folder, hub.source())


def test_a_folder_that_cannot_be_made_is_told(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    assert "set `checkpoint_dir` to a place that can be written" in refused(tmp_path / "file" / "v1", hub.source())


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
