"""Callbacks of jobs, from the JobManager to a real HTTP server, over every store and over restarts."""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from deployments.callbacks import AT_ONCE, CallbackRules
from tests.deployments.house import House, die, sing_for_ever, until
from tests.deployments.receiver import Receiver
from tests.redis_server import RedisServer

RULES = CallbackRules(hosts=("127.0.0.1",), allow_private=True, secret="key")


@pytest.fixture(params=["sqlite", "redis"])
async def calling_house(request: pytest.FixtureRequest, tmp_path: Path, house: House) -> House:
    """Which may call back; once with each store."""
    redis_url = None
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        server.empty()
        redis_url = server.url
    await house.close()
    await house.open(callbacks=RULES, redis_url=redis_url)
    return house


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every attempt follows the one before without a pause."""
    monkeypatch.setattr("deployments.callbacks.RETRY_DELAYS_S", DELAYS_S)
    monkeypatch.setattr("deployments.deliveries.RETRY_DELAYS_S", DELAYS_S)


DELAYS_S = (0.0, 0.0, 0.0)


def told(receiver: Receiver) -> list[dict[str, Any]]:
    return [json.loads(body) for _, _, body in receiver.received]


async def until_told(receiver: Receiver, count: int) -> list[dict[str, Any]]:
    async def so_many() -> bool:
        return len(receiver.received) >= count

    await until(so_many)
    return told(receiver)


async def until_settled(house: House) -> None:
    async def nothing_left() -> bool:
        return await house.manager._store.callbacks() == []

    await until(nothing_left)


async def test_the_end_of_a_job_is_told_once_and_signed(calling_house: House, receiver: Receiver) -> None:
    request_id = await calling_house.submit(callback_url=receiver.url)
    view = await calling_house.end_of(request_id)
    await until_settled(calling_house)
    assert told(receiver) == [
        {
            "type": "job.ended",
            "request_id": request_id,
            "attempt": 1,
            "status": "completed",
            "outcome": "completed",
            "error": None,
            "error_code": None,
            "completed_at": view.completed_at,
        }
    ]
    [(_, headers, _)] = receiver.received
    assert headers["webhook-id"] == request_id
    assert headers["webhook-signature"].startswith("v1,")


async def test_jobs_that_fail_or_are_cancelled_are_told_of_too(calling_house: House, receiver: Receiver) -> None:
    calling_house.generator.script = sing_for_ever
    running = await calling_house.submit(callback_url=receiver.url)
    waiting = await calling_house.submit(callback_url=receiver.url)
    await calling_house.until_running(running)
    await calling_house.manager.cancel(waiting)
    calling_house.generator.script = die
    await calling_house.manager.cancel(running)
    failing = await calling_house.submit(callback_url=receiver.url)
    calls = {call["request_id"]: call for call in await until_told(receiver, 3)}
    assert calls[waiting]["outcome"] == calls[running]["outcome"] == "cancelled"
    assert (calls[failing]["outcome"], calls[failing]["error_code"]) == ("failed", "replica_lost")


async def test_a_delivery_that_failed_is_made_again_and_counts(
    calling_house: House, receiver: Receiver, at_once: None
) -> None:
    receiver.status = 503
    await calling_house.submit(callback_url=receiver.url)
    await until_told(receiver, 2)
    receiver.status = 200
    await until_settled(calling_house)
    attempts = [call["attempt"] for call in told(receiver)]
    assert attempts == [*range(1, len(attempts) + 1)]


async def test_a_callback_that_never_arrives_is_given_up_in_the_log(
    calling_house: House, receiver: Receiver, at_once: None, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.status = 500
    with caplog.at_level(logging.WARNING, "ray.serve"):
        request_id = await calling_house.submit(callback_url=receiver.url)
        await calling_house.end_of(request_id)
        await until_settled(calling_house)
    assert [call["attempt"] for call in told(receiver)] == [1, 2, 3, 4]
    assert caplog.messages[-1] == f"{request_id}: its callback is given up after 4 attempts: the receiver answered 500"


async def test_a_receiver_that_is_gone_is_not_called_again(
    calling_house: House, receiver: Receiver, at_once: None
) -> None:
    receiver.status = 410
    await calling_house.submit(callback_url=receiver.url)
    await until_told(receiver, 1)
    await until_settled(calling_house)
    assert len(receiver.received) == 1


async def test_a_restart_between_the_end_and_the_delivery_loses_no_callback(
    calling_house: House, receiver: Receiver
) -> None:
    receiver.answers.clear()
    request_id = await calling_house.submit(callback_url=receiver.url)
    await until_told(receiver, 1)  # it has come, but nobody heard that it did
    await calling_house.close()
    receiver.answers.set()
    await calling_house.open()
    calls = await until_told(receiver, 2)
    await until_settled(calling_house)
    assert [(call["request_id"], call["attempt"]) for call in calls] == [(request_id, 1), (request_id, 2)]
    await calling_house.close()
    await calling_house.open()
    await calling_house.end_of(await calling_house.submit(callback_url=receiver.url))
    await until_settled(calling_house)
    assert len(receiver.received) == 3  # what has arrived is not told again


async def test_a_pause_between_two_attempts_outlives_the_job_manager(calling_house: House, receiver: Receiver) -> None:
    receiver.status = 500
    request_id = await calling_house.submit(callback_url=receiver.url)

    async def postponed() -> bool:
        row = await calling_house.manager._store.get(request_id)
        return row is not None and row.callback is not None and row.callback.due > 0

    await until(postponed)
    await calling_house.close()
    await calling_house.open()
    await calling_house.end_of(await calling_house.submit())
    assert len(receiver.received) == 1


async def test_receivers_that_hang_keep_no_job_from_its_end(calling_house: House, receiver: Receiver) -> None:
    receiver.answers.clear()
    ids = []
    for _ in range(AT_ONCE + 4):
        ids.append(await calling_house.submit(callback_url=receiver.url))
        assert (await calling_house.end_of(ids[-1])).outcome == "completed"
    await until_told(receiver, AT_ONCE)
    assert len(receiver.received) == AT_ONCE
    receiver.answers.set()
    await until_settled(calling_house)
    assert sorted(call["request_id"] for call in told(receiver)) == sorted(ids)


async def test_a_redis_that_forgets_makes_no_callback_twice(
    house: House, receiver: Receiver, redis_server: RedisServer
) -> None:
    redis_server.empty()
    await house.close()
    await house.open(callbacks=RULES, redis_url=redis_server.url)
    await house.submit(callback_url=receiver.url)
    await until_told(receiver, 1)
    await until_settled(house)
    receiver.answers.clear()
    pending = await house.submit(callback_url=receiver.url)
    await until_told(receiver, 2)
    redis_server.empty()
    await house.end_of(await house.submit())
    await house.close()
    receiver.answers.set()
    await house.open()
    calls = await until_told(receiver, 3)
    await until_settled(house)
    assert [call["request_id"] for call in calls[1:]] == [pending, pending]
    await asyncio.sleep(0)
    assert len(receiver.received) == 3
