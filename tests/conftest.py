"""What several test folders share: the golden figures, and a checkpoint made from their recipe."""

import gc
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

# Ray reads this when it is first imported: no token between the processes of a test's own cluster.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden figures, recipes and manifests."""
    return GOLDEN


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint (seed 0) that the golden cases belong to."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    subprocess.run([sys.executable, GOLDEN / "make_checkpoint.py", folder], check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One Ray for the whole test session: two CPUs, no GPU, no dashboard."""
    import ray
    from ray import serve

    ray.init(
        "local", num_cpus=2, num_gpus=0, include_dashboard=False, object_store_memory=300 * 2**20, log_to_driver=False
    )
    yield
    serve.shutdown()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # Ray drops its processes' handles before they have ended
        ray.shutdown()
        gc.collect()
