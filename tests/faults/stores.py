"""A real Redis that is stopped, emptied, or loses what it wrote last."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from deployments.store.redis import PREFIX
from tests.faults.application import Application
from tests.faults.campaign import Fault, Stage
from tests.faults.ledger import LONG, in_parallel
from tests.faults.processes import LEASE_S
from tests.redis_server import RedisServer

AWAY_S = 3.0


class RedisApplication(Application):
    redis: RedisServer


@contextmanager
def with_redis(folder: Path) -> Iterator[Application]:
    (folder / "redis").mkdir()
    with RedisServer(folder / "redis") as redis:
        application = RedisApplication(folder / "app", {"jobs": {"lease_s": LEASE_S}, "store": redis.url})
        application.redis = redis
        with application:
            yield application


def redis_stopped_and_started(stage: Stage) -> float:
    return _away(stage, signal.SIGTERM)


def redis_killed_and_started(stage: Stage) -> float:
    return _away(stage, signal.SIGKILL)


def _away(stage: Stage, how: signal.Signals) -> float:
    server, jobs = _redis(stage), _jobs_under_way(stage)
    server.stop(how)
    assert stage.ledger.try_to_submit() == 503
    time.sleep(AWAY_S)
    server.start()
    return _all_end(stage, jobs)


def redis_emptied(stage: Stage) -> float:
    jobs = _jobs_under_way(stage)
    _redis(stage).empty()
    return _all_end(stage, jobs)


def redis_taken_over(stage: Stage) -> float:
    """As by another JobManager of this service, which then died: the deposed one is replaced."""
    jobs, manager = _jobs_under_way(stage), stage.application.pid_of("JobManager")
    with redis.Redis.from_url(_redis(stage).url) as client:
        client.set(f"{PREFIX}:owner", "another")
    recovery_s = _all_end(stage, jobs)
    assert stage.application.pid_of("JobManager") != manager
    return recovery_s


def last_second_of_redis_lost(stage: Stage) -> float:
    """It comes back with the files of a moment ago: jobs that were accepted since are written again."""
    server = _redis(stage)
    file = stage.application.folder.parent / "redis" / "appendonly.aof"
    before = stage.ledger.submit()
    copy = file.read_bytes()
    since = _jobs_under_way(stage)
    ended = stage.ledger.submit()
    stage.ledger.until_ended(ended)
    server.stop(signal.SIGKILL)
    file.write_bytes(copy)
    server.start()
    return _all_end(stage, [before, *since, ended])


def job_manager_killed_over_redis(stage: Stage) -> float:
    jobs = _jobs_under_way(stage)
    killed_at = stage.application.kill("JobManager")
    _all_end(stage, jobs)
    return time.monotonic() - killed_at


def _jobs_under_way(stage: Stage) -> list[str]:
    jobs = [stage.ledger.submit(LONG), *in_parallel(lambda _: stage.ledger.submit(), range(4))]
    stage.ledger.until_running(jobs[0])
    return jobs


def _all_end(stage: Stage, jobs: list[str]) -> float:
    started_at = time.monotonic()
    new = stage.ledger.submit()
    recovery_s = time.monotonic() - started_at
    outcomes = [stage.ledger.until_ended(one) for one in (*jobs, new)]
    assert outcomes == ["completed"] * len(outcomes), outcomes
    return recovery_s


def _redis(stage: Stage) -> RedisServer:
    assert isinstance(stage.application, RedisApplication)
    return stage.application.redis


FAULTS = [
    Fault("Redis taken over by another JobManager", redis_taken_over, with_redis, times=2),
    Fault("Redis stopped and started", redis_stopped_and_started, with_redis),
    Fault("Redis killed and started", redis_killed_and_started, with_redis),
    Fault("Redis emptied", redis_emptied, with_redis),
    Fault("Redis without its last second", last_second_of_redis_lost, with_redis),
    Fault("JobManager killed, jobs in Redis", job_manager_killed_over_redis, with_redis),
]
