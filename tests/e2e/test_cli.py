"""The command that starts the service."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from acestep_engine.checkpoint import NANO_PATH
from serve_app import cli
from serve_app.settings import Settings
from serve_app.start.errors import StartError
from tests.e2e.server import free_port

ROOT = Path(__file__).parents[2]


def settings_for(*options: str, arguments: dict[str, Any] | None = None) -> Settings:
    return cli.settings_of(arguments or {}, cli._parser().parse_args(options))


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ([], None),
        (["--bf16"], True),
        (["--bf16", "true"], True),
        (["--bf16", "false"], False),
        (["--bf16=False"], False),
        (["--no-bf16"], False),
    ],
)
def test_a_switch_is_written_in_every_way_people_write_it(options: list[str], value: bool | None) -> None:
    assert settings_for(*options).bf16 is value


def test_the_documented_options_are_understood_with_underscores_and_dashes() -> None:
    for style in (
        "--torch_compile --cpu_offload --overlapped_decode",
        "--torch-compile --cpu-offload --overlapped-decode",
    ):
        settings = settings_for(*style.split())
        assert (settings.torch_compile, settings.cpu_offload, settings.overlapped_decode) == (True, True, True)


def test_options_change_the_file_and_leave_the_rest() -> None:
    settings = settings_for("--model", "v1-3.5b", "--no-cpu-offload", arguments={"cpu_offload": True, "bf16": False})
    assert (settings.model, settings.cpu_offload, settings.bf16) == ("v1-3.5b", False, False)


def test_a_checkpoint_path_is_a_checkpoint_or_where_the_published_one_is_kept(tmp_path: Path) -> None:
    assert settings_for("--checkpoint_path", str(NANO_PATH)).model == str(NANO_PATH)
    kept = settings_for("--checkpoint_path", str(tmp_path))
    assert (kept.model, kept.checkpoint_dir) == ("v1-3.5b", tmp_path)
    assert settings_for("--checkpoint_path", "").model == "auto"


def test_a_misspelt_setting_is_refused_by_its_name() -> None:
    with pytest.raises(StartError, match=r"generator\.max_replica: Extra inputs"):
        settings_for(arguments={"generator": {"max_replica": 2}})


@pytest.mark.parametrize("path", [ROOT / "serve_config.yaml", *(ROOT / "configs").glob("*.yaml")], ids=lambda p: p.name)
def test_every_configuration_file_is_valid(path: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if content.get("kind") == "RayService":
        content = yaml.safe_load(content["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(content)
    Settings.model_validate(cli.application_of(cli.ConfigFile.model_validate(content)).args)


def test_the_default_configuration_says_what_the_settings_default_to(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACE_OUTPUT_DIR", "ACESTEP_ADMIN_KEY", "ACESTEP_CALLBACK_SECRET", "LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    assert Settings.model_validate(cli.application_of(cli.read_config(ROOT / "serve_config.yaml")).args) == Settings()


def test_a_port_in_use_is_said_in_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "empty.yaml"
    config.write_text("")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main(["--host", "127.0.0.1", "--port", str(port), "--config", str(config)]) == 1
    sentence = f"cannot listen at 127.0.0.1:{port}: Address already in use. Choose another with --port or --host"
    assert capsys.readouterr().err == f"acestep-serve: {sentence}\n"


def test_a_configuration_that_is_not_there_is_said_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--config", "nowhere.yaml"]) == 1
    assert capsys.readouterr().err == "acestep-serve: nowhere.yaml cannot be read: No such file or directory\n"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[tuple["subprocess.Popen[str]", list[str]]]:
    """`acestep-serve` at a free port, in another directory, and the lines it prints.

    Its environment is what containers and .env files leave: variables without a value, a home that cannot be written,
    a folder for temporary files whose name is too long for sockets.
    """
    with socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        port = probe.getsockname()[1]
    options = ["--host", "[::1]", "--port", str(port), "--model", "nano"]
    odd = {"HOME": "/proc/none", "TMPDIR": str(tmp_path / ("x" * 80)), "RAY_AUTH_MODE": "", "RAY_ADDRESS": ""}
    (tmp_path / ("x" * 80)).mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "serve_app.cli", *options],
        cwd=tmp_path,
        env=os.environ | odd | {"PYTHONPATH": str(ROOT), "ACE_OUTPUT_DIR": "songs", "LOG_LEVEL": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # Ctrl-C reaches all of a terminal's processes
    )
    lines: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lines.extend, args=(process.stdout,))
    reader.start()
    yield process, lines
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    reader.join(timeout=30)
    process.stdout.close()


@pytest.mark.cluster
@pytest.mark.parametrize("ending", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_it_starts_says_what_to_do_next_and_stops_cleanly(
    service: tuple["subprocess.Popen[str]", list[str]], ending: signal.Signals, tmp_path: Path
) -> None:
    process, lines = service
    for _ in range(1200):
        if any("Ctrl-C" in line for line in lines) or process.poll() is not None:
            break
        threading.Event().wait(0.1)
    printed = "".join(lines)
    assert "model      nano on cpu" in printed, printed
    assert "no voices" in printed
    assert "not be applied" not in printed  # Serve's message of options, which are applied
    assert re.search(r"dashboard  http://127\.0\.0\.1:\d+", printed)
    command = printed[printed.index("curl ") : printed.index("song.wav") + len("song.wav")]
    subprocess.run(shlex.split(command.replace("\\\n", " ")), cwd=tmp_path, check=True, capture_output=True, timeout=60)
    assert (tmp_path / "song.wav").read_bytes()[:4] == b"RIFF"

    if ending is signal.SIGINT:
        os.killpg(process.pid, ending)
    else:
        process.send_signal(ending)
    assert process.wait(timeout=60) == 0
    printed = "".join(lines)
    assert printed.endswith("\nStopped.\n")
    assert "Traceback" not in printed
    assert "failed" not in printed, printed


@pytest.mark.cluster
def test_a_start_that_fails_ends_with_what_the_replica_says(tmp_path: Path) -> None:
    (tmp_path / ".acestep").mkdir()
    (tmp_path / ".acestep" / "jobs.sqlite3").write_text("no database at all")
    ended = subprocess.run(
        [sys.executable, "-m", "serve_app.cli", "--host", "127.0.0.1", "--port", str(free_port()), "--model", "nano"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        f"acestep-serve: the application did not start: the job store {tmp_path}/.acestep/jobs.sqlite3 is damaged or no"
        " job store (file is not a database); it was left as it is: move it away to start with an empty one"
    )
