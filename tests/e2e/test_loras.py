"""Adapters through the real deployments: registered, sung with, changed, and still there after a restart."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from acestep_engine.params import Adapter, GenerationParams
from deployments.messages import LoraInfo, LoraRefusedError
from tests.e2e.conftest import SONG, Graph
from tests.nano_lora import save_nano_lora

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loras")


def register(graph: Graph, root: Path, name: str, seed: int) -> Adapter:
    path = save_nano_lora(root / name, seed)
    info: LoraInfo = graph.call("register_lora", name, str(path), str(root))
    return Adapter(name, info.digest, info.path)


def under(adapter: Adapter, weight: float = 1.0) -> GenerationParams:
    return dataclasses.replace(SONG, adapter=dataclasses.replace(adapter, weight=weight))


def latents_of(graph: Graph, request_id: str) -> np.ndarray:
    view = graph.end_of(request_id)
    assert view.outcome == "completed", view.error
    (path,) = (graph.state / "latents").glob(f"{request_id}*")
    return load_file(path)["latents"]


def test_songs_under_adapters_and_none_are_made_together(graph: Graph, root: Path) -> None:
    rap, choir = register(graph, root, "rap", 1), register(graph, root, "choir", 2)
    wanted = [SONG, under(rap), under(choir), under(rap, 0.0), under(rap, -1.0), under(rap)]
    base, first, other, nothing, turned, again = (latents_of(graph, graph.submit(song)) for song in wanted)
    assert np.array_equal(nothing, base)
    assert np.array_equal(again, first)
    for one in (first, other, turned):
        assert not np.allclose(one, base, atol=1e-3)
    assert not np.allclose(first, other, atol=1e-3)


def test_what_is_no_adapter_of_the_model_is_not_registered(graph: Graph, root: Path) -> None:
    (root / "empty").mkdir()
    with pytest.raises(LoraRefusedError, match="empty has none of"):
        graph.call("register_lora", "empty", str(root / "empty"), str(root))
    assert "empty" not in [info.name for info in graph.call("loras")]


def test_a_job_never_gets_another_adapter_than_it_was_accepted_with(graph: Graph, root: Path) -> None:
    accepted = register(graph, root, "changing", 3)
    save_nano_lora(root / "changing", 4)
    view = graph.end_of(graph.submit(under(accepted)))
    assert (view.outcome, view.error_code) == ("failed", "adapter_changed")
    assert view.error == "the files of the adapter 'changing' were changed since it was registered"
    renewed = register(graph, root, "changing", 4)
    assert graph.end_of(graph.submit(under(renewed))).outcome == "completed"


def test_adapters_and_jobs_with_them_outlive_the_job_manager(graph: Graph, root: Path) -> None:
    adapter = register(graph, root, "lasting", 5)
    before = graph.call("loras")
    request_id = graph.submit(under(adapter))
    graph.kill("JobManager")
    deadline = time.monotonic() + 60
    while True:
        try:
            assert graph.call("loras") == before
            break
        except Exception as error:
            if time.monotonic() > deadline:
                raise AssertionError("the job manager did not come back") from error
            time.sleep(0.5)
    assert graph.end_of(request_id).outcome == "completed"


def test_songs_go_to_the_replica_that_has_their_adapter(tmp_path: Path) -> None:
    """On two pretended GPUs, which both have songs all the time.

    Routing prefers a replica that has the adapter, but does not wait for it long: a song may go to the other.
    Without the preference every adapter would be loaded on both.
    """
    run = subprocess.run(
        [sys.executable, "-m", "tests.e2e.two_gpus_loras", str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    loaded = json.loads((tmp_path / "adapters.json").read_text())
    assert len(loaded) == 2
    held = [name for of_one in loaded for name in of_one]
    assert set(held) == {"a", "b", "c", "d"}
    assert len(held) <= 6
