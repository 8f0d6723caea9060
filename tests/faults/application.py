"""`acestep-serve` as its users start it, whose processes can be killed, frozen and counted."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import yaml

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 90.0
NAME = "ace-step"
ROOT = Path(__file__).parents[2]

REPLICAS = ("Generator", "JobManager", "TextEncoder", "Ingress")


class Application:
    """The nano model with its files in `folder`. `settings` are those of the configuration file's `args`.

    All processes below the one that stages the faults are taken for its own: there is one application at a time.
    """

    command: ClassVar[Sequence[str]] = (sys.executable, "-m", "serve_app.cli")
    ready: ClassVar[str] = "ACE-Step is ready"  # what it logs once it can be used
    declared: ClassVar[Mapping[str, Any]] = {}  # of the application in the configuration file, beside its settings

    def __init__(
        self, folder: Path, settings: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.state, self.outputs = folder / "state", folder / "outputs"
        self.log = folder / "log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self._environment = dict(environment or {})
        arguments = {"model": "nano", "state_dir": str(self.state), "output_dir": str(self.outputs)} | dict(
            settings or {}
        )
        application = {"name": NAME, "import_path": "serve_app.app:build_app", "args": arguments} | dict(self.declared)
        http = {"host": "127.0.0.1", "port": self._port}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "serve_config.yaml").write_text(yaml.safe_dump({"http_options": http, "applications": [application]}))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def store(self) -> Path:
        return self.state / "jobs.sqlite3"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            self.kill_everything()

    def start(self) -> None:
        """Returns when it is ready. Raises RuntimeError with the log's end if it does not come up."""
        if not self._comes_up():
            raise RuntimeError(f"the application did not start: {self.log.read_text()[-3000:]}")

    def refuses_to_start(self) -> str:
        """What it says as it ends. Raises AssertionError if it comes up."""
        assert not self._comes_up(), "it started"
        self.kill_everything()
        return self.log.read_text()

    def _comes_up(self) -> bool:
        environment = os.environ | {"RAY_AUTH_MODE": "disabled"} | self._environment
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, [self._environment.get("PYTHONPATH"), str(ROOT), os.environ.get("PYTHONPATH")])
        )
        if "RAY_ADDRESS" not in self._environment:
            environment.pop("RAY_ADDRESS", None)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(self.command, cwd=self.folder, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.ready not in self.log.read_text(errors="replace"):
            if self._process.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def stop(self) -> int:
        """As `systemctl stop` and Ctrl-C do; its exit status. Raises TimeoutExpired if it does not end."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self._process.wait(STOP_TIMEOUT_S)

    def kill_everything(self) -> None:
        """All processes at once, Ray's own as well."""
        for pid in processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait(10)
        deadline = time.monotonic() + 10
        while any(_is_alive(pid) for pid in processes()) and time.monotonic() < deadline:
            time.sleep(0.05)

    def pid_of(self, role: str) -> int:
        """Of a replica that is up, by its deployment, or of another process by its title. Waits for one to be there."""
        title = f"ray::ServeReplica:{NAME}:{role}" if role in REPLICAS else role
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            for pid, command in processes().items():
                if command.startswith(title) and not command.startswith(f"{title}.initialize"):
                    return pid
            assert time.monotonic() < deadline, f"no {role} runs"
            time.sleep(0.02)

    def kill(self, role: str) -> float:
        """End its process as the system would, at once: when that was."""
        return self.signal(role, signal.SIGKILL)

    def signal(self, role: str, number: signal.Signals) -> float:
        os.kill(self.pid_of(role), number)
        return time.monotonic()


def processes() -> dict[int, str]:
    """All that descend from this process and are no zombies, with their command lines."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(entry.name)] = int(parent)
    found: dict[int, str] = {}
    for pid in parents:
        above: int | None = parents[pid]
        while above is not None and above != os.getpid():
            above = parents.get(above)
        if above is not None:
            with suppress(OSError):
                found[pid] = (Path("/proc") / str(pid) / "cmdline").read_text().replace("\0", " ")
    return found


def _is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
