"""What the command finds out, and puts right, before Ray starts."""

import fcntl
import getpass
import os
import pwd
import re
import resource
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from serve_app import cli
from serve_app.settings import Settings
from serve_app.start.addresses import authority, loopback_names, split_address
from serve_app.start.checks import check_listening
from serve_app.start.cluster import raised_in
from serve_app.start.environment import EMPTY_IS_UNSET, drop_empty, have_home, names_cluster, prepare, token_of
from serve_app.start.errors import StartError
from serve_app.start.folders import choose_folders, choose_ray_folder, ray_folder_problem, writing_problem
from serve_app.start.gcs import check_cluster_answers
from serve_app.start.ready import banner, wait_until_healthy
from tests.e2e.server import free_port

HEALTH = {"model": "nano", "device": "cpu", "notice": None}


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a command that is run in a folder of its own, at a free port."""
    variables = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "RAY_AUTH_MODE": "disabled"}
    monkeypatch.setattr(os, "environ", variables)
    monkeypatch.setattr(cli.Cluster, "start", _must_not_start)
    monkeypatch.chdir(tmp_path)
    return variables  # type: ignore[return-value]


def _must_not_start(*_: object) -> None:
    raise AssertionError("Ray would have been started")


def sentence_of(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """Run the command, which must refuse to start within two seconds, and return what it says."""
    started = time.monotonic()
    assert cli.main(["--model", "nano", "--host", "127.0.0.1", "--port", str(free_port()), *options]) == 1
    assert time.monotonic() - started < 2
    printed = capsys.readouterr().err
    assert printed.startswith("acestep-serve: ")
    assert printed.count("\n") == 1
    return printed.removeprefix("acestep-serve: ").rstrip()


def unused_uid() -> int:
    taken = {entry.pw_uid for entry in pwd.getpwall()}
    return next(uid for uid in range(12345, 65_000) if uid not in taken)


# Hosts


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_ipv6_address_has_brackets_in_every_url(host: str) -> None:
    assert cli.HttpSettings(host=host).host == "::1"
    assert authority(host, 8019) == "[::1]:8019"
    assert "'http://[::1]:8019/generate_music'" in banner(f"http://{authority(host, 8019)}", HEALTH, None)


def test_an_empty_host_is_every_interface() -> None:
    assert cli.HttpSettings(host="").host == "0.0.0.0"


def test_a_zone_is_encoded() -> None:
    assert authority("fe80::1%eth0", 1) == "[fe80::1%25eth0]:1"


def test_a_service_at_an_ipv6_address_is_found_healthy() -> None:
    with listening("::1") as port:
        url = f"http://{authority('::1', port)}"
        with pytest.raises(StartError, match=r"http://\[::1\]:\d+/health has not answered"):
            wait_until_healthy(url, timeout_s=0.1)


@pytest.mark.parametrize("host", ["nowhere.invalid", "a" * 70, "a..b", "http://127.0.0.1", "nul\0"])
def test_a_host_that_is_none_is_said_before_anything_starts(host: str) -> None:
    with pytest.raises(StartError, match=r"cannot listen at .*Choose another with --port or --host"):
        check_listening(host, 8019)


@contextmanager
def listening(host: str = "127.0.0.1") -> Iterator[int]:
    """A port where something listens that never answers."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as taken:
        taken.bind((host, 0))
        taken.listen()
        yield taken.getsockname()[1]


# Variables that are empty


def test_an_empty_variable_counts_as_unset() -> None:
    variables = dict.fromkeys(EMPTY_IS_UNSET, "") | {"CUDA_VISIBLE_DEVICES": ""}
    drop_empty(variables)
    assert variables == {"CUDA_VISIBLE_DEVICES": ""}


def test_every_variable_of_the_help_counts_as_unset_when_it_is_empty() -> None:
    documented = re.findall(r"^  (\w+(?:, \w+)*)  ", cli.EPILOG.partition("examples:")[0], re.MULTILINE)
    named = {name for names in documented for name in names.split(", ")}
    assert len(named) == 14
    assert named - {"CUDA_VISIBLE_DEVICES"} <= set(EMPTY_IS_UNSET)


def test_settings_take_their_defaults_where_variables_are_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACE_OUTPUT_DIR", "ACESTEP_ADMIN_KEY", "ACESTEP_CALLBACK_SECRET", "LOG_LEVEL"):
        monkeypatch.setenv(name, "")
    settings = Settings()
    assert settings.output_dir == Path("./outputs")
    assert settings.admin_key is None
    assert settings.callbacks.secret == ""
    assert settings.log_level == "INFO"


# Which cluster


@pytest.mark.parametrize("address", ["", "local", "LOCAL"])
def test_without_an_address_a_cluster_is_started(address: str, tmp_path: Path) -> None:
    variables = {"RAY_ADDRESS": address, "HOME": str(tmp_path)}
    drop_empty(variables)
    assert not names_cluster(variables)
    prepare(variables, None)
    assert "RAY_ADDRESS" not in variables
    assert variables["RAY_memory_monitor_refresh_ms"] == "0"
    assert variables["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] == "60"


@pytest.mark.parametrize("mode", ["token", "disabled"])
def test_a_cluster_of_its_own_listens_at_the_loopback_interface_only(mode: str, tmp_path: Path) -> None:
    variables = {"HOME": str(tmp_path), "RAY_AUTH_MODE": mode}
    prepare(variables, None)
    assert variables["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"


def test_what_the_user_has_set_for_ray_stays(tmp_path: Path) -> None:
    variables = {"HOME": str(tmp_path), "RAY_memory_monitor_refresh_ms": "250", "RAY_AUTH_MODE": "disabled"}
    prepare(variables, None)
    assert variables["RAY_memory_monitor_refresh_ms"] == "250"
    assert variables["RAY_AUTH_MODE"] == "disabled"


def test_a_running_cluster_is_sent_the_token_that_there_is(tmp_path: Path) -> None:
    variables = {"RAY_ADDRESS": "127.0.0.1:6379", "HOME": str(tmp_path)}
    prepare(variables, None)
    assert "RAY_AUTH_MODE" not in variables
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    prepare(variables, None)
    assert variables["RAY_AUTH_MODE"] == "token"
    assert "RAY_memory_monitor_refresh_ms" not in variables


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://127.0.0.1:10001", "nonsense", "::1", ":6379"])
def test_an_address_that_is_none_is_said(
    address: str, command: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    command["RAY_ADDRESS"] = address
    assert f"RAY_ADDRESS, {address}, is no address of a Ray cluster" in sentence_of(capsys)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_a_cluster_that_is_not_there_is_said(
    host: str, command: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    command["RAY_ADDRESS"] = f"{host}:{free_port()}"
    assert f"no Ray cluster answers at {command['RAY_ADDRESS']}" in sentence_of(capsys)


def test_what_listens_and_is_no_cluster_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.start.gcs.TIMEOUT_S", 0.5)
    with listening() as port, pytest.raises(StartError, match="is no Ray cluster: deadline_exceeded"):
        check_cluster_answers("127.0.0.1", port, {})


class AskForToken(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers the first call of every Ray process as a cluster does that asks for a token."""

    def service(self, handler_call_details: Any) -> Any:
        assert handler_call_details.method == "/ray.rpc.NodeInfoGcsService/GetClusterId"
        sent = dict(handler_call_details.invocation_metadata).get("authorization")

        def answer(request: bytes, context: Any) -> bytes:
            if sent != "Bearer right":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "right"}, None),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "wrong"}, "the one that was found is not its"),
        ({"RAY_AUTH_MODE": "token"}, "none was found"),
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "right"}, "RAY_AUTH_MODE keeps it from being sent"),
    ],
)
def test_a_cluster_that_asks_for_a_token_is_asked_with_it(
    variables: dict[str, str], problem: str | None, tmp_path: Path
) -> None:
    with ThreadPoolExecutor() as threads:
        server = grpc.server(threads, handlers=(AskForToken(),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            if problem is None:
                check_cluster_answers("127.0.0.1", port, variables)
            else:
                with pytest.raises(StartError, match=f"asks for a token, and {problem}"):
                    check_cluster_answers("127.0.0.1", port, {"HOME": str(tmp_path), **variables})
        finally:
            server.stop(None).wait()


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("10.0.0.1:6379", ("10.0.0.1", 6379)),
        ("[::1]:6379", ("::1", 6379)),
        ("head:1", ("head", 1)),
        ("::1:6379", None),
        ("head:0", None),
        ("head:65536", None),
        ("head:" + "9" * 5000, None),
        ("head:²", None),
    ],
)
def test_addresses_are_a_host_and_a_port(address: str, parts: tuple[str, int] | None) -> None:
    assert split_address(address) == parts


# The token


def test_a_token_is_made_in_the_home_folder_and_read_by_nobody_else(tmp_path: Path) -> None:
    variables = {"HOME": str(tmp_path)}
    prepare(variables, None)
    path = tmp_path / ".ray" / "auth_token"
    assert token_of(variables) == path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert "RAY_AUTH_TOKEN" not in variables


@pytest.mark.parametrize("obstacle", ["no home", "a file for .ray", "a folder for the token"])
def test_where_no_token_can_be_kept_one_is_made_for_this_start(
    obstacle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = Path("/proc/none") if obstacle == "no home" else tmp_path
    if obstacle == "a file for .ray":
        (home / ".ray").touch()
    if obstacle == "a folder for the token":
        (home / ".ray" / "auth_token").mkdir(parents=True)
    variables = {"HOME": str(home)}
    prepare(variables, None)
    assert len(variables["RAY_AUTH_TOKEN"]) == 64
    printed = capsys.readouterr().err
    assert f"{home}/.ray/auth_token" in printed
    assert "RAY_AUTH_TOKEN_PATH" in printed
    assert variables["RAY_AUTH_TOKEN"] not in printed


def test_a_user_id_without_an_entry_has_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(os, "getuid", unused_uid)
    variables: dict[str, str] = {}
    have_home(variables)
    assert variables["HOME"] == "/"


@pytest.mark.parametrize("options", [["--checkpoint_path", "~/nowhere"], ["download", "--config", "nowhere.yaml"]])
def test_a_command_without_a_home_says_one_sentence(
    options: list[str], command: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    del command["HOME"]
    monkeypatch.setattr(os, "getuid", unused_uid)
    assert cli.main(options) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_settings_that_are_wrong_are_said_by_a_download_too(
    command: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    command["LOG_LEVEL"] = "loud"
    assert cli.main(["download"]) == 1
    assert capsys.readouterr().err.startswith("acestep-serve: the settings: log_level: ")


def test_a_token_file_that_is_named_and_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for path in (tmp_path, tmp_path / "empty", tmp_path / "missing"):
        with pytest.raises(StartError, match=f"the token file {path} .* RAY_AUTH_TOKEN_PATH"):
            prepare({"HOME": str(tmp_path), "RAY_AUTH_TOKEN_PATH": str(path)}, None)


# Ray's folder


def test_the_longest_path_that_ray_can_use_is_used_and_one_more_byte_is_too_long() -> None:
    longest = "/tmp/" + "x" * (107 - len("/tmp//ray/session_2026-11-30_19-16-00_123456_1234567/sockets/plasma_store"))
    assert ray_folder_problem(Path(longest)) is None
    assert "exceed the limit of 107" in str(ray_folder_problem(Path(longest + "x")))


@pytest.mark.parametrize("temporary", ["/tmp/" + "x" * 78, "/proc/none", "relative"])
def test_another_folder_is_taken_where_the_systems_is_of_no_use_to_ray(
    temporary: str, capsys: pytest.CaptureFixture[str]
) -> None:
    variables = {"TMPDIR": temporary}
    choose_ray_folder(variables)
    assert ray_folder_problem(Path(variables["RAY_TMPDIR"])) is None
    assert temporary in capsys.readouterr().err


def test_a_temporary_folder_that_is_too_long_for_the_sockets_of_python_is_replaced_as_well() -> None:
    variables = {"TMPDIR": "/tmp/" + "x" * 70, "RAY_TMPDIR": "/tmp"}
    choose_folders(variables)
    assert variables["TMPDIR"] == "/tmp/" + "x" * 70
    variables["TMPDIR"] += "x"
    choose_folders(variables)
    assert variables["TMPDIR"] == "/tmp"


@pytest.mark.parametrize("folder", ["/tmp/" + "x" * 78, "/proc/none"])
def test_a_folder_that_the_user_chose_for_ray_is_not_replaced(folder: str) -> None:
    with pytest.raises(StartError, match=rf"below RAY_TMPDIR, {folder}: .*Set it to another folder"):
        choose_ray_folder({"RAY_TMPDIR": folder})


def test_a_folder_without_room_is_of_no_use_to_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.start.folders.RAY_NEEDS_MIB", 10**9)
    monkeypatch.setattr("serve_app.start.folders.SOCKET_PATH_BYTES", 1000)
    assert "MiB are free there, 1000000000 are needed" in str(ray_folder_problem(tmp_path))


# Where jobs and songs are kept


def test_a_folder_that_cannot_be_written_is_said(
    command: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command["ACE_OUTPUT_DIR"] = "/proc/none"
    assert sentence_of(capsys).startswith("output_dir, /proc/none, cannot be written: ")
    command["ACE_OUTPUT_DIR"] = str(tmp_path / "songs")
    config = tmp_path / "config.yaml"
    config.write_text(
        "applications: [{import_path: 'serve_app.app:build_app', args: {state_dir: /proc/none}}]", encoding="utf-8"
    )
    assert sentence_of(capsys, "--config", str(config)).startswith("state_dir, /proc/none, cannot be written: ")


def test_a_file_in_the_place_of_a_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert writing_problem(tmp_path / "file" / "outputs") == f"{tmp_path}/file is no folder"


def test_a_disk_that_takes_nothing_more_is_found_out_without_a_trace(tmp_path: Path) -> None:
    assert writing_problem(tmp_path / "outputs") is None
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        assert writing_problem(tmp_path / "outputs") == "File too large"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [*tmp_path.iterdir()]


def test_a_state_folder_in_use_is_said(
    command: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / ".acestep").mkdir()
    with open(tmp_path / ".acestep" / "lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        said = sentence_of(capsys)
    assert said == f"another service uses the state folder {tmp_path}/.acestep: stop it, or set another `state_dir`"


@pytest.mark.parametrize("model", ["nosuch", "/nowhere/at/all"])
def test_a_model_that_is_unknown_is_said(
    model: str, command: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert repr(model) in sentence_of(capsys, "--model", model)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:Geheim/77@127.0.0.1:1/0",
        "redis://:77/Geheim@127.0.0.1:1/0",
        "redis://Geheim/x:77@127.0.0.1:1/0",
        "redis://:Geheim#77@127.0.0.1:1/0",
        "redis://:77#Geheim@127.0.0.1:1/0",
        "redis://:77?Geheim@127.0.0.1:1/0",
        "redis://:[77/Geheim@127.0.0.1:1/0",
        "redis://:Geheim77@127.0.0.1:1/0",
        "redis://127.0.0.1:1/0?password=Geheim77",
        "redis:/:Geheim77@127.0.0.1",
    ],
)
def test_no_part_of_a_password_is_said(
    url: str, command: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"applications: [{{import_path: 'serve_app.app:build_app', args: {{store: '{url}'}}}}]")
    said = sentence_of(capsys, "--config", str(config))
    assert "store" in said
    assert "77" not in said
    assert "Geheim" not in said


def test_settings_that_are_refused_are_not_repeated() -> None:
    with pytest.raises(ValueError, match="admin_key") as refusal:
        Settings.model_validate({"admin_key": ["Geheim"], "store": "redis://:Geheim/77@host"})
    assert "Geheim" not in str(refusal.value)
    assert "Geheim" not in repr(Settings(admin_key="Geheim", store="redis://:Geheim@host"))


# What replicas are started with, and what they say


def test_a_user_without_a_name_has_one_in_the_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    from serve_app.app import replica_environment

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    uid = unused_uid()
    monkeypatch.setattr(os, "getuid", lambda: uid)
    with pytest.raises((KeyError, OSError)):
        getpass.getuser()
    for name, value in replica_environment().items():
        monkeypatch.setenv(name, value)
    assert getpass.getuser() == f"uid{uid}"


def test_a_user_with_a_name_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from serve_app.app import replica_environment

    monkeypatch.setenv("USER", "ace")
    assert "USER" not in replica_environment()


@pytest.mark.parametrize(
    ("variables", "spins"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_of_a_replica_wait_awake_for_a_moment_only_unless_the_user_says_otherwise(
    variables: dict[str, str], spins: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serve_app.app import replica_environment

    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert replica_environment().get("GOMP_SPINCOUNT") == spins


def test_the_last_exception_of_a_traceback_is_the_reason() -> None:
    message = (
        "The deployment failed to start 3 times in a row. See controller logs for details. Error:\n"
        "\x1b[36mray::ServeReplica:ace-step:JobManager.initialize_and_get_metadata()\x1b[39m (pid=1, ip=127.0.0.1)\n"
        "RuntimeError: Traceback (most recent call last):\n"
        '  File "sqlite.py", line 222, in _connect\n'
        "    ValueError: not this one\n"
        "sqlite3.DatabaseError: file is not a database\n"
        "\n"
        "The above exception was the direct cause of the following exception:\n"
        "\n"
        "deployments.store.protocol.StoreFormatError: the job store is damaged: move it away\n"
    )
    assert raised_in(message) == "the job store is damaged: move it away"
    assert raised_in("Deploying application ace-step failed: it was deleted") is None


@pytest.mark.parametrize(
    ("host", "names"),
    [
        ("0.0.0.0", ()),
        ("::", ()),
        ("192.168.1.5", ()),
        ("music.example.org", ()),
        ("localhost", ("localhost", "127.0.0.1", "[::1]")),
        ("127.0.0.1", ("localhost", "127.0.0.1", "[::1]")),
        ("127.0.0.2", ("localhost", "127.0.0.1", "[::1]", "127.0.0.2")),
        ("::1", ("localhost", "127.0.0.1", "[::1]")),
    ],
)
def test_a_server_that_only_this_machine_reaches_is_called_by_loopback_names(host: str, names: tuple[str, ...]) -> None:
    assert loopback_names(host) == names
