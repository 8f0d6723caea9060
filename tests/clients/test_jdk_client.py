"""Java's own HTTP client with its defaults: it offers HTTP/2 (`Upgrade: h2c`) with every request over plain HTTP."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.clients.conftest import LiveServer

JAVA = shutil.which("java")
PROGRAM = Path(__file__).with_name("JdkClient.java")


@pytest.mark.skipif(JAVA is None, reason="no java here")
def test_no_body_of_javas_own_client_is_lost(live_server: LiveServer) -> None:
    command = [str(JAVA), "-XX:TieredStopAtLevel=1", str(PROGRAM), live_server.url]  # from its source, as Java 11 can
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    answers = {name: rest for name, *rest in (line.split(" ") for line in run.stdout.splitlines())}
    assert set(answers) == {"json", "again", "form", "multipart", "large", "chunks", "get"}
    assert all(status == "200" for status, *_ in answers.values()), run.stdout
    assert answers["form"][1] == answers["chunks"][1] == "audio/wav"
    assert int(answers["chunks"][2]) > 10_000
    assert len(live_server.jobs.views) == 6
