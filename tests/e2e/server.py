"""`acestep-serve` in its own process."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

START_TIMEOUT_S = 180.0


def free_port() -> int:
    """Return a port of the loopback interface that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@dataclass
class Server:
    url: str
    outputs: Path
    pid: int  # of the command, whose descendants are all of its processes

    def post(self, route: str, **options: Any) -> requests.Response:
        return requests.post(f"{self.url}{route}", timeout=120, **options)

    def get(self, route: str, **options: Any) -> requests.Response:
        return requests.get(f"{self.url}{route}", timeout=120, **options)

    def until_ended(self, request_id: str) -> dict[str, Any]:
        deadline = time.monotonic() + 120
        while (status := self.get(f"/status/{request_id}").json())["status"] not in ("completed", "failed"):
            assert time.monotonic() < deadline, status
            time.sleep(0.1)
        return status  # type: ignore[no-any-return]


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """The server with the nano model, whose files are in `folder`; it must stop as it should."""
    port = free_port()
    environment = os.environ | {"ACE_OUTPUT_DIR": str(folder / "outputs"), "ACESTEP_ADMIN_KEY": "secret"}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "serve_app.cli", "--model", "nano", "--host", "127.0.0.1", "--port", str(port)]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while "ACE-Step is ready" not in (folder / "log").read_text():
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.5)
            yield Server(f"http://127.0.0.1:{port}", folder / "outputs", process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
    assert process.returncode == 0
