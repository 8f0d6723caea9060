"""Replicas that come and go with the queue, on a node that pretends to have four GPUs."""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from tests.faults.application import Application
from tests.faults.campaign import Fault, Stage
from tests.faults.ledger import LONG, PATIENCE_S, SHORT, has_ended

REPLICAS = 4
THERE_AND_BACK_S = 600.0  # two cores load three replicas at once in more than a minute
DELAY_S = 5.0
WATCH_S = 0.2
AFTER_ALL_STEPS = 10**6


class ScaledApplication(Application):
    """Started by `serve run`, which alone reads the scaling policy of a configuration file."""

    command = (str(Path(sys.executable).with_name("serve")), "run", "serve_config.yaml")
    ready = "Submitted deploy config successfully"
    declared: ClassVar[Mapping[str, Any]] = {
        "autoscaling_policy": {
            "policy_function": "deployments.autoscaling:QueuePolicy",
            "policy_kwargs": {"songs_per_replica": 2},
        }
    }


@contextmanager
def four_gpus(folder: Path) -> Iterator[Application]:
    """No replica to begin with, four at most."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 4, "num_gpus": REPLICAS, "include_dashboard": False}
    )
    try:
        generator = {
            "min_replicas": 0,
            "max_replicas": REPLICAS,
            "use_gpu": True,
            "downscale_delay_s": DELAY_S,
            "graceful_shutdown_timeout_s": 120,
        }
        # Four replicas share the cores of one machine: their threads must not spin while they wait for each other.
        environment = {"RAY_ADDRESS": cluster.address, "OMP_WAIT_POLICY": "passive"}
        with ScaledApplication(folder, {"generator": generator}, environment) as application:
            yield application
    finally:
        cluster.shutdown()


def from_none_to_all_and_back(stage: Stage) -> float:
    """The first job calls the first replica; many call all; then all but what two long songs need go, and then these.

    No song is disturbed: none is ever seen a step back. Answers the seconds from the first job to its first step.
    """
    ledger = stage.ledger
    _until_replicas(stage, 0)
    submitted_at = time.monotonic()
    first = ledger.submit(LONG)
    ledger.until_running(first)
    recovery_s = time.monotonic() - submitted_at
    running = [first, *(ledger.submit(LONG, audio_duration=30.0, infer_step=150) for _ in range(2))]
    running += [ledger.submit(LONG) for _ in range(10)]
    steps = dict.fromkeys(running, 0)
    seen: list[int | None] = []
    while (replicas := _replicas(stage)) != 0 or not all(_is_over(stage, one) for one in running):
        assert time.monotonic() < submitted_at + THERE_AND_BACK_S, f"{replicas} replicas are left"
        seen.append(replicas)
        for one in running:
            step = _step(ledger.status(one))
            assert step >= steps[one], f"{one} went back from step {steps[one]} to {step}"
            steps[one] = step
        time.sleep(WATCH_S)
    assert REPLICAS in seen, f"never {REPLICAS} replicas, but {set(seen)}"
    assert [ledger.until_ended(one) for one in running] == ["completed"] * len(running)
    assert ledger.until_ended(ledger.submit(SHORT)) == "completed"
    print(f"    {' '.join(str(n) for n, before in zip(seen, [None, *seen], strict=False) if n != before)} replicas")
    return recovery_s


def _step(status: dict[str, Any]) -> int:
    """Of its diffusion; what comes after it is more than any step."""
    if has_ended(status):
        return AFTER_ALL_STEPS
    progress = status.get("progress") or {"stage": "waiting"}
    if progress["stage"] == "decoding":
        return AFTER_ALL_STEPS
    return int(progress["step"]) if progress["stage"] == "diffusion" else 0


def _is_over(stage: Stage, request_id: str) -> bool:
    return has_ended(stage.ledger.status(request_id))


def _replicas(stage: Stage) -> int | None:
    """None as long as the application has no route yet."""
    answer = stage.ledger.get("/queue/status")
    return int(answer.json()["replicas"]) if answer.status_code == 200 else None


def _until_replicas(stage: Stage, wanted: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while _replicas(stage) != wanted:
        assert time.monotonic() < deadline, f"there are never {wanted} replicas"
        time.sleep(WATCH_S)


FAULTS = [Fault("replicas 0 to 4 and back, by the queue", from_none_to_all_and_back, four_gpus, times=2)]
