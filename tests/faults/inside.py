"""What happens inside: a GPU that fails, NaN, a clock that jumps, lost calls, an object store without room."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.application import ROOT, Application
from tests.faults.campaign import Fault, NotStagedError, Stage
from tests.faults.ledger import LONG, in_parallel
from tests.faults.processes import LEASE_S

HOOKS = Path(__file__).parent / "hooks"
STORE_BYTES = 100 * 2**20
HOUR_S = 3_600.0


@contextmanager
def with_hooks(folder: Path, **jobs: float) -> Iterator[Application]:
    """The same, but a file in `faults` makes something happen in its processes."""
    (folder / "faults").mkdir()
    environment = {
        "PYTHONPATH": str(HOOKS),
        "ACESTEP_FAULTS": str(folder / "faults"),
        "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(STORE_BYTES),
    }
    with Application(folder / "app", {"jobs": {"lease_s": LEASE_S} | jobs}, environment) as application:
        yield application


@contextmanager
def with_hooks_and_little_patience(folder: Path) -> Iterator[Application]:
    """The same, but an engine whose step takes 15 s hangs."""
    with with_hooks(folder, job_timeout_s=30.0) as application:
        yield application


@contextmanager
def with_lost_calls(folder: Path) -> Iterator[Application]:
    """Every tenth call of an actor is lost on its way, or its answer on the way back."""
    lost = {"num_failures": -1, "req_failure_prob": 5, "resp_failure_prob": 5}
    environment = {
        "RAY_testing_rpc_failure": json.dumps({"CoreWorkerService.grpc_client.PushTask": lost}),
        "RAY_testing_rpc_failure_avoid_intra_node_failures": "0",
    }
    with Application(folder, {"jobs": {"lease_s": LEASE_S}}, environment) as application:
        yield application


def out_of_memory(stage: Stage) -> float:
    """That song is tried again, and the replica stays."""
    generator = stage.application.pid_of("Generator")
    recovery_s = _made_in_spite_of(stage, "out-of-memory")
    assert stage.application.pid_of("Generator") == generator
    return recovery_s


def sticky_error(stage: Stage) -> float:
    """The replica is replaced, and its songs are made by the next one."""
    generator = stage.application.pid_of("Generator")
    recovery_s = _made_in_spite_of(stage, "sticky")
    assert stage.application.pid_of("Generator") != generator
    return recovery_s


def engine_hangs(stage: Stage) -> float:
    """In a step that never ends: the replica is replaced, and no song times out."""
    generator = stage.application.pid_of("Generator")
    neighbour = stage.ledger.submit(LONG)
    recovery_s = _made_in_spite_of(stage, "hang")
    assert stage.ledger.until_ended(neighbour) == "completed"
    assert stage.application.pid_of("Generator") != generator
    return recovery_s


def _made_in_spite_of(stage: Stage, fault: str) -> float:
    request_id = stage.ledger.submit(LONG)
    stage.ledger.until_running(request_id)
    happened_at = _happen(stage, fault)
    assert stage.ledger.until_ended(request_id) == "completed"
    return time.monotonic() - happened_at


def not_a_number(stage: Stage) -> float:
    """That song fails for this reason, with no file; the next is made."""
    request_id = stage.ledger.submit(LONG)
    stage.ledger.until_running(request_id)
    happened_at = _happen(stage, "nan")
    assert stage.ledger.until_ended(request_id) == "failed"
    assert stage.ledger.entries[request_id].error_code == "numerical"
    assert stage.ledger.until_ended(stage.ledger.submit()) == "completed"
    return time.monotonic() - happened_at


def clock_jumps_ahead(stage: Stage) -> float:
    return _jump(stage, HOUR_S)


def clock_jumps_back(stage: Stage) -> float:
    return _jump(stage, -HOUR_S)


def _jump(stage: Stage, by_s: float) -> float:
    running, waiting = stage.ledger.submit(LONG), stage.ledger.submit()
    stage.ledger.until_running(running)
    jumped_at = time.monotonic()
    clock = _faults(stage) / "clock"
    clock.write_text(str(by_s))
    try:
        after = stage.ledger.submit()
        outcomes = [stage.ledger.until_ended(one) for one in (running, waiting, after)]
    finally:
        clock.unlink()
    assert outcomes == ["completed"] * 3, outcomes
    return time.monotonic() - jumped_at


def object_store_full(stage: Stage) -> float:
    """Somebody else on the node holds all of it."""
    filler = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.fill_object_store", str(2 * STORE_BYTES)],
        cwd=ROOT,
        env=os.environ | {"RAY_AUTH_MODE": "disabled"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert filler.stdin is not None
    assert filler.stdout is not None
    try:
        said = filler.stdout.readline()
        if "full" not in said:
            raise NotStagedError(f"the object store was not filled: {said.strip()}")
        started_at = time.monotonic()
        jobs = in_parallel(lambda _: stage.ledger.submit(), range(4))
        assert [stage.ledger.until_ended(one) for one in jobs] == ["completed"] * 4
        return time.monotonic() - started_at
    finally:
        filler.stdin.close()
        filler.wait(60)


def calls_lost(stage: Stage) -> float:
    started_at = time.monotonic()
    jobs = in_parallel(lambda _: stage.ledger.submit(), range(10))
    for one in jobs:
        stage.ledger.until_ended(one)
    return time.monotonic() - started_at


def _happen(stage: Stage, fault: str) -> float:
    file = _faults(stage) / fault
    file.touch()
    deadline = time.monotonic() + 60
    while file.exists():
        assert time.monotonic() < deadline, f"{fault} did not happen"
        time.sleep(0.001)
    return time.monotonic()


def _faults(stage: Stage) -> Path:
    return stage.application.folder.parent / "faults"


FAULTS = [
    Fault("out of GPU memory (raised in a forward on the CPU)", out_of_memory, with_hooks),
    Fault("sticky CUDA error (raised in a forward on the CPU)", sticky_error, with_hooks, times=2),
    Fault("NaN latents", not_a_number, with_hooks),
    Fault("the clock jumps an hour ahead", clock_jumps_ahead, with_hooks),
    Fault("the clock jumps an hour back", clock_jumps_back, with_hooks),
    Fault("object store full", object_store_full, with_hooks, times=1),
    Fault("the engine's thread hangs", engine_hangs, with_hooks_and_little_patience, times=2),
    Fault("calls between processes lost", calls_lost, with_lost_calls),
]
