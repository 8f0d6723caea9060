"""A download that cannot be, or must not: from a small hub on this machine, each with what to do."""

import hashlib
import socket
from dataclasses import replace as changed
from pathlib import Path

import pytest

from acestep_engine.checkpoint import LYRIC_VOCABULARY
from acestep_engine.download import REPOSITORY, WORK_FOLDER, Source, download_checkpoint
from acestep_engine.errors import DownloadError
from tests.engine.download.asking import contents, refused
from tests.engine.download.hub import (
    COMPLETE,
    CONFIG,
    LISTING,
    PUBLISHED,
    VOCABULARY,
    WEIGHTS,
    Hub,
    listing_with,
    resolved,
)


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
