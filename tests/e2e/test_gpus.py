"""Where replicas really run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.placement import PlacementError

pytestmark = pytest.mark.cluster


def test_more_replicas_than_the_cluster_can_hold_are_refused_when_building(ray_cluster: None) -> None:
    from serve_app.app import build_app
    from serve_app.settings import GeneratorSettings, Settings

    with pytest.raises(PlacementError, match="2 Generator replicas ask for 2 GPUs, the cluster has 0"):
        build_app(Settings(generator=GeneratorSettings(min_replicas=2, use_gpu=True)))


def test_two_gpus_have_one_generator_each_on_a_machine_with_one_cpu(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-m", "tests.e2e.two_gpus", str(tmp_path)],
        cwd=root,
        env=os.environ | {"RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert sorted(json.loads((tmp_path / "gpus.json").read_text())) == [["0"], ["1"]]
