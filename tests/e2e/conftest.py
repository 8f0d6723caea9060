"""The real application on a real Ray, without HTTP: what the ingress does is asked of the JobManager's handle."""

import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from acestep_engine.params import GenerationParams
from deployments.messages import JOB_MANAGER, JobView, ServiceStatus, Submission
from tests.e2e.server import Server, serving

SONG = GenerationParams("piano", "", 2.0, seed=7, steps=4, guidance_scale=1.0)
LONG_SONG = GenerationParams("piano", "", 240.0, seed=7, steps=200)
SLOW_SONG = GenerationParams("piano", "", 12.0, seed=7, steps=200)  # of SONG's size, so that SONG waits for it
TIMEOUT_S = 120.0

T = TypeVar("T")


@dataclass
class Graph:
    """The application, as the ingress sees it."""

    name: str
    state: Path
    outputs: Path
    handle: Any

    def call(self, method: str, *arguments: object, timeout_s: float = TIMEOUT_S) -> Any:
        from ray.exceptions import RayTaskError

        try:
            return getattr(self.handle, method).remote(*arguments).result(timeout_s=timeout_s)
        except RayTaskError as error:
            raise error.cause from None

    def submit(self, *songs: GenerationParams, **changes: Any) -> str:
        songs, request_id = songs or (SONG,), uuid.uuid4().hex
        self.call("submit", Submission(request_id, songs, "wav", {"prompt": songs[0].prompt}, **changes))
        return request_id

    def end_of(self, request_id: str) -> JobView:
        """Raises AssertionError if it does not end."""
        view: JobView = self.call("wait", request_id, TIMEOUT_S)
        assert view.ended, view
        return view

    def audio_of(self, request_id: str) -> bytes:
        audio: bytes = self.call("result", request_id).audio.tobytes()
        return audio

    def until(self, request_id: str, condition: Callable[[JobView], bool]) -> JobView:
        def read() -> JobView:
            view: JobView = self.call("status", request_id)
            return view

        return wait_for(read, condition)

    def until_running(self, request_id: str) -> JobView:
        return self.until(request_id, _sings)

    def until_status(self, condition: Callable[[ServiceStatus], bool]) -> ServiceStatus:
        def read() -> ServiceStatus:
            status: ServiceStatus = self.call("service_status")
            return status

        return wait_for(read, condition)

    def kill(self, deployment: str) -> None:
        """End the process of this application's replica as the system would: at once."""
        os.kill(pid_of_replica(self.name, deployment), signal.SIGKILL)


def _sings(view: JobView) -> bool:
    return view.progress is not None and view.progress.step > 0


def wait_for(read: Callable[[], T], condition: Callable[[T], bool]) -> T:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition(value := read()):
        assert time.monotonic() < deadline, value
        time.sleep(0.05)
    return value


def pid_of_replica(application: str, deployment: str) -> int:
    """Found by the title that Ray gives the process."""
    title = f"ray::ServeReplica:{application}:{deployment}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_bytes().startswith(title):
                return int(process.name)
        except (FileNotFoundError, ProcessLookupError):
            continue
    raise AssertionError(f"no replica of {deployment} runs")


@pytest.fixture(scope="module")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nano checkpoint at another place, as a second model."""
    from acestep_engine.checkpoint import NANO_PATH

    folder = tmp_path_factory.mktemp("checkpoints") / "other"
    folder.symlink_to(NANO_PATH, target_is_directory=True)
    return folder


@pytest.fixture(scope="module")
def graph(ray_cluster: None, other_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Graph]:
    """One application for all tests of a file."""
    from ray import serve

    from serve_app.app import build_app
    from serve_app.settings import Settings

    root = tmp_path_factory.mktemp("graph")
    broken = root / "broken"
    broken.mkdir()
    for part in other_checkpoint.resolve().iterdir():
        (broken / part.name).symlink_to(part)
    (broken / "ace_step_transformer").unlink()
    (broken / "ace_step_transformer").mkdir()
    (broken / "ace_step_transformer" / "config.json").write_text("{}")
    (broken / "ace_step_transformer" / "model.safetensors").touch()
    settings = Settings.model_validate(
        {
            "model": "nano",
            "checkpoints": {"other": str(other_checkpoint), "broken": str(broken)},
            "state_dir": root / "state",
            "output_dir": root / "outputs",
            "limits": {"queue_size": 3},
            "generator": {"songs_per_size": 1},
        }
    )
    name = f"graph-{uuid.uuid4().hex[:6]}"
    serve.start(proxy_location="Disabled")
    serve.run(build_app(settings), name=name, route_prefix=None)
    handle = serve.get_deployment_handle(JOB_MANAGER, name)
    yield Graph(name, root / "state", root / "outputs", handle)
    serve.shutdown()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests of a file."""
    with serving(tmp_path_factory.mktemp("server")) as server:
        yield server
