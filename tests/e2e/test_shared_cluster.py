"""The command on a Ray cluster where Serve runs already, at another port and with an application of somebody else's."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from tests.e2e.server import free_port

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
TOKEN = "0123456789abcdef" * 4
DEPLOY = """
import sys
import ray
from ray import serve

@serve.deployment
class Other:
    def __call__(self, request):
        return "somebody else's"

ray.init(address="auto", namespace="serve", log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
serve.run(Other.bind(), name="other", route_prefix=sys.argv[2])
"""


@dataclass
class OtherCluster:
    """A cluster that asks for a token, which lies in a home folder; `environment` is that of its user."""

    environment: dict[str, str]
    http_port: int

    def deploy_other(self, route_prefix: str) -> None:
        command = [sys.executable, "-c", DEPLOY, str(self.http_port), route_prefix]
        environment = self.environment | {"RAY_AUTH_MODE": "token"}
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)

    def get(self, path: str) -> str:
        return requests.get(f"http://127.0.0.1:{self.http_port}{path}", timeout=10).text

    def command(self) -> list[str]:
        return [sys.executable, "-m", "serve_app.cli", "--model", "nano", "--port", str(free_port())]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[OtherCluster]:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(TOKEN)
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # pytest's own are too long for Ray's sockets
    options = ["--head", "--block", "--port", str(port), "--num-cpus", "2", "--temp-dir", folder]
    options += ["--include-dashboard", "false", "--disable-usage-stats"]
    with open(tmp_path / "ray.log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", *options],
            env=environment | {"RAY_AUTH_MODE": "token"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        for _ in range(600):
            if "Ray runtime started" in (tmp_path / "ray.log").read_text():
                break
            assert process.poll() is None, (tmp_path / "ray.log").read_text()
            threading.Event().wait(0.1)
        yield OtherCluster(environment | {"RAY_ADDRESS": f"127.0.0.1:{port}"}, free_port())
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def test_it_serves_where_serve_is_and_leaves_what_others_have_there(cluster: OtherCluster, tmp_path: Path) -> None:
    cluster.deploy_other("/")
    refused = subprocess.run(
        cluster.command(),
        cwd=tmp_path,
        env=cluster.environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith(
        'acestep-serve: the application did not start: Prefix / is being used by application "other".'
    )
    assert cluster.get("/") == "somebody else's"

    cluster.deploy_other("/other")
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(cluster.command(), cwd=tmp_path, env=cluster.environment, stdout=log, stderr=log)
    try:
        for _ in range(1200):
            if "Ctrl-C stops it" in (tmp_path / "log").read_text():
                break
            assert process.poll() is None, (tmp_path / "log").read_text()
            threading.Event().wait(0.1)
        assert f"http://127.0.0.1:{cluster.http_port}/docs" in (tmp_path / "log").read_text()
        assert '"model":"nano"' in cluster.get("/health")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
    assert cluster.get("/other") == "somebody else's"
