"""The JobManager with scripted replicas: what the store knows is true, however late its answers come."""

import asyncio
import dataclasses
from typing import Any

import pytest

from deployments.failures import Failure
from deployments.messages import JobEndedError, JobNotEndedError, StorageError
from deployments.store.patience import until_stored
from deployments.store.protocol import Ending, JobRow, JobStore, StoreDeposedError
from deployments.store.redis import RedisStore
from tests.deployments.house import AUDIO, House, failing, sing, sing_for_ever, until
from tests.redis_server import RedisServer

ASKED = {"key": "order 7", "request_digest": "d"}


@pytest.fixture(params=["sqlite", "redis"])
async def kept(request: pytest.FixtureRequest, house: House) -> House:
    """A JobManager over each kind of store."""
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        server.empty()
        await house.close()
        await house.open(redis_url=server.url)
    return house


class LateAnswers:
    """Delays the answers of one method of a JobManager's store: it has done what was asked, and the caller waits."""

    def __init__(self, store: JobStore, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done, self.answer = asyncio.Event(), asyncio.Event()
        real = getattr(store, method)

        async def late(*arguments: Any) -> Any:
            answer = await real(*arguments)
            self.done.set()
            await self.answer.wait()
            return answer

        monkeypatch.setattr(store, method, late)


async def test_a_resend_that_reads_its_job_just_before_the_end_is_answered_with_that_end(
    kept: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.generator.script = sing_for_ever
    request_id = await kept.submit(**ASKED)
    await kept.until_running(request_id)
    late = LateAnswers(kept.manager._store, "find_key", monkeypatch)
    resent = asyncio.create_task(kept.submit(**ASKED))
    await late.done.wait()
    await kept.manager.cancel(request_id)
    late.answer.set()
    assert await resent == request_id
    assert (await kept.manager.status(request_id)).outcome == "cancelled"
    queue = await kept.manager.queue_status()
    assert (queue.queue_size, queue.status_counts["pending"], len(kept.generator.started)) == (0, 0, 1)


async def test_a_song_that_was_made_while_its_resend_was_read_keeps_its_files(
    kept: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = LateAnswers(kept.manager._store, "set_attempts", monkeypatch)  # the song does not start before
    request_id = await kept.submit(**ASKED)
    await writing.done.wait()
    reading = LateAnswers(kept.manager._store, "find_key", monkeypatch)
    resent = [asyncio.create_task(kept.submit(**ASKED)) for _ in range(3)]
    await reading.done.wait()
    writing.answer.set()
    assert (await kept.end_of(request_id)).outcome == "completed"
    reading.answer.set()
    assert await asyncio.gather(*resent) == [request_id] * 3
    await kept.end_of(await kept.submit())  # whatever ran beside it is over
    assert (await kept.manager.status(request_id)).outcome == "completed"
    assert (await kept.manager.result(request_id)).audio.tobytes() == AUDIO.tobytes()
    assert kept.generator.started.count(request_id) == 1


async def test_a_job_whose_acceptance_was_never_heard_of_is_taken_up_once_by_its_resends(
    kept: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a lost answer of Redis leaves it."""
    row = await _unheard_row(kept)
    await kept.manager._store.add(row)
    late = LateAnswers(kept.manager._store, "find_key", monkeypatch)
    resent = [asyncio.create_task(kept.submit(**ASKED)) for _ in range(3)]
    await late.done.wait()
    late.answer.set()
    assert set(await asyncio.gather(*resent)) == {row.request_id}
    assert (await kept.end_of(row.request_id)).outcome == "completed"
    assert kept.generator.started.count(row.request_id) == 1


async def test_a_job_that_is_known_to_the_store_only_has_neither_an_end_nor_a_result(kept: House) -> None:
    row = await _unheard_row(kept)
    await kept.manager._store.add(row)
    batch = await kept.manager.events(row.request_id, 0, 0.01)
    assert (batch.events, batch.over) == ((), False)
    with pytest.raises(JobNotEndedError):
        await kept.manager.source_song(row.request_id, 0)


async def test_a_running_job_that_the_store_has_ended_ends_so_and_keeps_its_files(kept: House) -> None:
    kept.generator.script = sing_for_ever
    request_id = await kept.submit()
    await kept.until_running(request_id)
    result = kept.root / "state/results" / f"{request_id}_0.wav"
    result.write_bytes(AUDIO.tobytes())
    await kept.manager._store.finish(request_id, Ending("completed", 2_000.0))
    with pytest.raises(JobEndedError):
        await kept.manager.cancel(request_id)
    assert (await kept.manager.status(request_id)).outcome == "completed"
    assert result.exists()
    waiting = await kept.submit()
    await kept.until_running(waiting)  # it has the place of the one that ended


async def test_a_deposed_job_manager_is_unhealthy_accepts_nothing_and_lets_its_songs_go(
    house: House, redis_server: RedisServer
) -> None:
    redis_server.empty()
    await house.close()
    await house.open(redis_url=redis_server.url)
    house.generator.script = sing_for_ever
    running = await house.submit()
    await house.until_running(running)
    await house.manager.check_health()
    song = house.manager._jobs[running].songs[0]
    successor = await RedisStore.open(redis_server.url, list, house.config.build_id)
    with pytest.raises(StorageError):
        await house.submit()
    for _ in range(2):  # for good
        with pytest.raises(StoreDeposedError):
            await house.manager.check_health()

    async def let_go() -> bool:
        return song.response is None

    await until(let_go)
    assert [row.request_id for row in await successor.unfinished()] == [running]
    await successor.close()


async def test_a_job_manager_whose_state_folder_was_replaced_leaves_everything_to_the_next(house: House) -> None:
    house.generator.script = sing_for_ever
    running = await house.submit()
    await house.until_running(running)
    (house.root / "state/lock").unlink()
    successor = House(house.root)
    await successor.open()
    assert (await successor.end_of(running)).outcome == "completed"
    with pytest.raises(StorageError):
        await house.submit()
    with pytest.raises(StoreDeposedError):
        await house.manager.check_health()
    assert (await successor.manager.result(running)).audio.tobytes() == AUDIO.tobytes()
    await successor.close()


async def test_an_end_that_finds_its_store_deposed_is_not_tried_for_ever(house: House) -> None:
    house.generator.script = sing_for_ever
    request_id = await house.submit()
    await house.until_running(request_id)
    house.manager._store.depose()
    with pytest.raises(StoreDeposedError):
        await asyncio.wait_for(until_stored(lambda: house.manager._store.set_attempts(request_id, 1)), 5)


async def test_an_end_that_cannot_be_written_down_fails_its_job(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.runner.explain", lambda cause: Failure("code", "\ud800"))  # no UTF-8
    house.generator.script = failing(ZeroDivisionError())
    view = await house.end_of(await house.submit())
    assert (view.outcome, view.error_code) == ("failed", "internal_error")
    house.generator.script = sing
    assert (await house.end_of(await house.submit())).outcome == "completed"


async def _unheard_row(house: House) -> JobRow:
    ended = await house.submit()
    await house.end_of(ended)
    row = await house.manager._store.get(ended)
    assert row is not None
    changes: dict[str, Any] = {"key": ASKED["key"], "request_digest": ASKED["request_digest"], "results": ()}
    changes |= {"status": "pending", "outcome": None, "completed_at": None, "started_at": None, "attempts": 0}
    return dataclasses.replace(row, request_id="f" * 32, **changes)
