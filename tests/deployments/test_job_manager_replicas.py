"""The JobManager with scripted replicas: who gets which song, and what happens when a replica misbehaves.

The same with real replicas, and with those that are killed, is in tests/e2e.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError

from acestep_engine.errors import NumericalError
from acestep_engine.params import GenerationParams, Progress
from deployments.autoscaling import WANTED_SONGS
from deployments.failures import GpuMemoryError
from deployments.lease import LeaseTerms
from deployments.messages import (
    Heartbeat,
    RenderJob,
    ReplicaState,
)
from deployments.runner import MAX_MEMORY_KILLS
from deployments.store.protocol import JobRow
from tests.deployments.house import (
    AUDIO,
    SONG,
    House,
    Message,
    die,
    failing,
    sing,
    sing_for_ever,
)


async def test_a_replica_that_dies_twice_is_forgiven(house: House) -> None:
    deaths = 0

    async def die_twice(job: RenderJob) -> AsyncIterator[Message]:
        nonlocal deaths
        deaths += 1
        async for message in die(job) if deaths <= 2 else sing(job):
            yield message

    house.generator.script = die_twice
    view = await house.end_of(await house.submit())
    assert (view.outcome, deaths) == ("completed", 3)


async def test_a_job_that_ends_three_replicas_is_not_given_a_fourth(house: House) -> None:
    house.generator.script = die
    view = await house.end_of(await house.submit())
    assert (view.status, view.error_code, len(house.generator.started)) == ("failed", "replica_lost", 3)
    house.generator.script = sing
    assert (await house.end_of(await house.submit())).outcome == "completed"


def killed_for_memory() -> OutOfMemoryError:
    return OutOfMemoryError("Task was killed due to the node running low on memory.")


async def test_a_replica_that_is_killed_for_memory_uses_up_no_attempt(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.runner.MEMORY_PAUSE_S", 0.0)
    ends = [killed_for_memory(), ActorDiedError, killed_for_memory(), killed_for_memory(), ActorDiedError]

    async def be_killed(job: RenderJob) -> AsyncIterator[Message]:
        yield Progress("diffusion", 1, 2)
        counted.append((await stored()).attempts)
        if ends:
            raise ends.pop(0)
        async for message in sing(job):
            yield message

    async def stored() -> JobRow:
        row = await house.manager._store.get(request_id)
        assert row is not None
        return row

    counted: list[int] = []
    house.generator.script = be_killed
    request_id = "a" * 32
    await house.submit(request_id=request_id)
    assert (await house.end_of(request_id)).outcome == "completed"
    assert counted == [1, 1, 2, 2, 2, 3]


async def test_a_song_whose_replicas_are_killed_for_memory_is_not_tried_for_ever(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.runner.MEMORY_PAUSE_S", 0.0)

    async def be_killed(job: RenderJob) -> AsyncIterator[Message]:
        yield Progress("diffusion", 1, 2)
        raise killed_for_memory()

    house.generator.script = be_killed
    view = await house.end_of(await house.submit())
    assert (view.error_code, len(house.generator.started)) == ("replica_lost", MAX_MEMORY_KILLS + 1)
    assert "out of memory" in (view.error or "")


async def test_a_job_whose_engine_stands_still_fails_although_its_replica_lives(house: House) -> None:
    async def stand_still(job: RenderJob) -> AsyncIterator[Message]:
        while True:
            yield Heartbeat(7)
            await asyncio.sleep(0.02)

    await house.close()
    await house.open(lease_terms=LeaseTerms(lease_s=10, stall_s=0.2))
    house.generator.script = stand_still
    view = await house.end_of(await house.submit())
    assert (view.outcome, view.error_code, view.error) == ("failed", "timeout", "timed out after 0.2 s")


async def test_a_song_that_waits_for_others_may_take_as_long_as_they_do(house: House) -> None:
    async def pause(job: RenderJob) -> AsyncIterator[Message]:
        for steps in range(20):
            yield Heartbeat(steps)
            await asyncio.sleep(0.05)
        async for message in sing(job):
            yield message

    await house.close()
    await house.open(lease_terms=LeaseTerms(lease_s=0.3, stall_s=0.3))
    house.generator.script = pause
    assert (await house.end_of(await house.submit())).outcome == "completed"


async def test_a_replica_that_falls_silent_loses_its_song_and_what_it_says_later_is_not_heard(house: House) -> None:
    wakes = asyncio.Event()

    async def freeze_once(job: RenderJob) -> AsyncIterator[Message]:
        if len(house.generator.started) == 1:
            yield Progress("diffusion", 1, 2)
            await wakes.wait()
            yield np.full(9, 7, np.uint8)  # its own idea of the song
            yield SONG
        async for message in sing(job):
            yield message

    await house.close()
    await house.open(lease_terms=LeaseTerms(lease_s=0.2, stall_s=60))
    house.generator.script = freeze_once
    request_id = await house.submit()
    view = await house.end_of(request_id)
    wakes.set()
    assert (view.outcome, len(house.generator.started)) == ("completed", 2)
    assert (await house.manager.result(request_id)).audio.tobytes() == AUDIO.tobytes()


async def test_the_more_urgent_start_first_and_know_how_long_they_wait(house: House) -> None:
    house.generator.script = sing_for_ever
    running = await house.submit()
    await house.until_running(running)
    late, urgent = await house.submit(priority=2), await house.submit(priority=7)
    views = {name: await house.manager.status(name) for name in (running, late, urgent)}
    assert [views[name].position for name in (running, urgent, late)] == [None, 0, 1]
    assert views[running].expected_wait_s is None
    assert views[urgent].expected_wait_s == 0.0
    assert (views[late].expected_wait_s or 0.0) > 0.0
    queue = await house.manager.queue_status()
    assert (queue.queue_size, queue.priority_counts) == (2, {2: 1, 7: 1})
    house.generator.script = sing
    await house.manager.cancel(running)
    ends = [await house.end_of(name) for name in (urgent, late)]
    assert (ends[0].completed_at or 0.0) <= (ends[1].started_at or 0.0)
    assert house.generator.started[1:] == [urgent, late]


async def test_every_replica_that_is_there_gets_its_songs_and_the_others_keep_their_order(house: House) -> None:
    house.generator.script = sing_for_ever
    first, second, third = [await house.submit() for _ in range(3)]
    await house.until_running(first)
    assert (await house.manager.status(second)).position == 0
    assert house.manager.record_autoscaling_stats() == {WANTED_SONGS: 3.0}
    for name in ("one", "two"):
        await house.manager.report(ReplicaState(name, "nano", "cpu"))
    await house.until_running(second)
    assert (await house.manager.status(third)).position == 0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NumericalError("the model answered NaN"), "numerical"),
        (GpuMemoryError("the song does not fit"), "out_of_memory"),
        (ZeroDivisionError("secret"), "internal_error"),
    ],
)
async def test_what_a_replica_raises_fails_its_job_at_once(house: House, error: Exception, code: str) -> None:
    house.generator.script = failing(error)
    view = await house.end_of(await house.submit())
    assert (view.outcome, view.error_code, len(house.generator.started)) == ("failed", code, 1)
    assert view.error is not None
    assert "secret" not in view.error
    assert house.files() == []


async def test_jobs_start_in_the_order_they_came(house: House) -> None:
    ids = [await house.submit() for _ in range(5)]
    for request_id in ids:
        await house.end_of(request_id)
    assert house.generator.started == ids


async def test_no_more_jobs_of_one_size_run_at_once_than_may(house: House) -> None:
    await house.close()
    await house.open(songs_per_size=2)
    house.generator.script = sing_for_ever
    ids = [await house.submit() for _ in range(4)]
    await house.until_running(ids[1])
    assert house.generator.started == ids[:2]
    assert [(await house.manager.status(request_id)).position for request_id in ids] == [None, None, 0, 1]
    counts = (await house.manager.queue_status()).status_counts
    assert counts == {"pending": 2, "processing": 2, "completed": 0, "failed": 0}
    await house.manager.cancel(ids[0])
    await house.until_running(ids[2])


async def test_long_songs_that_fill_the_server_never_keep_a_short_one_waiting(house: House) -> None:
    house.generator.script = sing_for_ever
    long = GenerationParams("piano", "", 240.0, seed=3)
    running, waiting = await house.submit(songs=(long,)), await house.submit(songs=(long,))
    short, behind = await house.submit(), await house.submit()
    await house.until_running(running)
    await house.until_running(short)
    assert house.generator.started == [running, short]
    assert [(await house.manager.status(request_id)).position for request_id in (waiting, behind)] == [0, 1]
    await house.manager.cancel(running)
    await house.until_running(waiting)
    assert (await house.manager.status(behind)).position == 0


async def test_a_poisonous_job_does_not_use_up_its_neighbours_attempts(house: House) -> None:
    await house.close()
    await house.open(songs_per_size=4)
    poison = uuid.uuid4().hex
    death = asyncio.Event()  # of the replica that they share

    async def share_a_replica(job: RenderJob) -> AsyncIterator[Message]:
        nonlocal death
        mine = death
        yield Progress("diffusion", 1, 2)
        if job.request_id == poison:
            await asyncio.sleep(0.02)  # so that its neighbours are there
            death.set()
            death = asyncio.Event()
            raise ActorDiedError
        await asyncio.wait([asyncio.ensure_future(mine.wait())], timeout=0.1)
        if mine.is_set():
            raise ActorDiedError
        yield AUDIO
        yield SONG

    house.generator.script = share_a_replica
    ids = [await house.submit(), await house.submit(request_id=poison), await house.submit()]
    views = [await house.end_of(request_id) for request_id in ids]
    assert [view.outcome for view in views] == ["completed", "failed", "completed"]
    assert views[1].error_code == "replica_lost"


async def test_last_attempts_run_one_at_a_time(house: House) -> None:
    await house.close()
    await house.open(songs_per_size=4)
    attempts: dict[str, int] = {}
    together: set[str] = set()

    async def die_twice(job: RenderJob) -> AsyncIterator[Message]:
        attempts[job.request_id] = attempts.get(job.request_id, 0) + 1
        if attempts[job.request_id] < 3:
            raise ActorDiedError
        assert not together
        together.add(job.request_id)
        yield Progress("diffusion", 1, 2)
        await asyncio.sleep(0.01)
        together.clear()
        yield AUDIO
        yield SONG

    house.generator.script = die_twice
    ids = [await house.submit() for _ in range(4)]
    assert [(await house.end_of(request_id)).outcome for request_id in ids] == ["completed"] * 4
