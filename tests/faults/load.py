"""Many jobs at once, random cancels, and a Generator that is killed again and again."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deployments.fleet import STALE_S
from tests.faults.application import Application
from tests.faults.campaign import Fault, Stage
from tests.faults.ledger import SHORT, in_parallel
from tests.faults.processes import LEASE_S

KILL_AFTER_S = (3.0, 8.0)  # since a Generator with its model says so: one that only starts makes nothing
CANCELLED_SHARE = 0.2
SUBMITTERS = 32


@contextmanager
def long_queue(folder: Path) -> Iterator[Application]:
    with Application(folder, {"jobs": {"lease_s": LEASE_S}, "limits": {"queue_size": 1_000}}) as application:
        yield application


class Load:
    """So many jobs. Recovery is the time from the first submission to the last end."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs

    def __call__(self, stage: Stage) -> float:
        started_at, over, kills = time.monotonic(), threading.Event(), list[float]()
        killer = threading.Thread(target=_kill_again_and_again, args=(stage, kills, over))
        killer.start()
        try:
            accepted = in_parallel(lambda _: stage.ledger.submit(SHORT), range(self._jobs), SUBMITTERS)
            victims = random.Random(self._jobs).sample(accepted, round(CANCELLED_SHARE * len(accepted)))
            cancelled = sum(in_parallel(stage.ledger.cancel, victims))
            for request_id in accepted:
                stage.ledger.until_ended(request_id)
        finally:
            over.set()
            killer.join()
        took_s = time.monotonic() - started_at
        outcomes = stage.ledger.outcomes()
        print(f"    {len(accepted)} accepted, {dict(outcomes)}, {len(kills)} Generators killed, {took_s:.0f} s")
        assert len(set(accepted)) == self._jobs, "two submissions have one id"
        assert outcomes["cancelled"] == cancelled, f"{cancelled} were cancelled, {outcomes['cancelled']} say so"
        return took_s


def _kill_again_and_again(stage: Stage, kills: list[float], over: threading.Event) -> None:
    draw = random.Random(1)
    while not over.wait(0.5):
        if stage.ledger.get("/health").json().get("replicas") and not over.wait(draw.uniform(*KILL_AFTER_S)):
            kills.append(stage.application.kill("Generator"))
            over.wait(STALE_S)  # until the one that is dead is no longer counted


QUICK = Fault("60 jobs, random cancels, Generator killed every few s", Load(60), long_queue, times=1)
FULL = Fault("500 jobs, random cancels, Generator killed every few s", Load(500), long_queue, times=1)
FAULTS = [QUICK, FULL]
