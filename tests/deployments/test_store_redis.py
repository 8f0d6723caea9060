"""The Redis store: what it does when Redis is gone, has forgotten, or belongs to another."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.asyncio.connection import UnixDomainSocketConnection

from deployments.messages import StorageError
from deployments.store.protocol import Ending, JobRow, StoreDeposedError, StoreFormatError
from deployments.store.redis import PREFIX, RedisStore
from tests.deployments.conftest import make_row
from tests.redis_server import RedisServer

COMPLETED = Ending("completed", 2_000.0)


@pytest.fixture
def server(redis_server: RedisServer) -> RedisServer:
    redis_server.empty()
    return redis_server


async def test_who_opened_the_store_before_changes_nothing_any_more(server: RedisServer) -> None:
    before = await RedisStore.open(server.url, list)
    await before.add(make_row("a"))
    after = await RedisStore.open(server.url, list)
    with pytest.raises(StoreDeposedError):
        await before.finish("a", COMPLETED)
    with pytest.raises(StoreDeposedError):
        await before.add(make_row("b"))
    assert [row.request_id for row in await after.unfinished()] == ["a"]
    await before.close()
    await after.close()


async def test_two_services_never_share_a_redis(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.store.redis.TAKE_OVER_WITHIN_S", 0.3)
    ours = await RedisStore.open(server.url, list, "ours")
    again = await RedisStore.open(server.url, list, "ours")  # as after its JobManager was replaced
    with pytest.raises(StorageError, match="another service uses the job store"):
        await RedisStore.open(server.url, list, "theirs")
    assert await again.add(make_row("a"))
    await again.close()
    theirs = await RedisStore.open(server.url, list, "theirs")
    assert [row.request_id for row in await theirs.unfinished()] == ["a"]
    for store in (ours, theirs):
        await store.close()


async def test_a_service_that_died_keeps_others_out_for_a_moment_only_and_one_that_is_idle_for_good(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.store.redis.HELD_S", 0.5)
    monkeypatch.setattr("deployments.store.redis.HOLD_AGAIN_S", 0.1)
    monkeypatch.setattr("deployments.store.redis.TAKE_OVER_WITHIN_S", 1.5)
    idle = await RedisStore.open(server.url, list, "idle")
    holding = asyncio.create_task(idle.hold())
    with pytest.raises(StorageError, match="another service"):
        await RedisStore.open(server.url, list, "theirs")
    holding.cancel()  # as its process dies
    theirs = await RedisStore.open(server.url, list, "theirs")
    holding = asyncio.create_task(idle.hold())  # it had been frozen only
    await asyncio.wait_for(holding, 5)
    assert idle.is_deposed
    with pytest.raises(StoreDeposedError):
        await idle.add(make_row("a"))
    assert await theirs.add(make_row("b"))
    for store in (idle, theirs):
        await store.close()


async def test_who_is_deposed_takes_nothing_over_when_redis_forgets(server: RedisServer) -> None:
    before = await RedisStore.open(server.url, list, "ours")
    await before.add(make_row("a"))
    server.empty()
    theirs = await RedisStore.open(server.url, list, "theirs")
    with pytest.raises(StoreDeposedError):
        await before.add(make_row("b"))
    assert await theirs.add(make_row("c"))
    for store in (before, theirs):
        await store.close()


async def test_a_redis_that_was_killed_has_every_accepted_job(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        store = await RedisStore.open(server.url, list)
        rows = [make_row(str(number)) for number in range(20)]
        for row in rows:
            assert await store.add(row)
        server.stop(signal.SIGKILL)
        with pytest.raises(StorageError, match="cannot be reached"):
            await store.add(make_row("nobody"))
        server.start()
        assert await store.unfinished() == rows
        assert await store.finish("3", COMPLETED)  # over a new connection, without being opened again
        await store.close()


async def test_an_emptied_redis_is_noticed_and_filled_again(server: RedisServer) -> None:
    kept: list[JobRow] = []
    store = await RedisStore.open(server.url, lambda: kept)
    for name in "abc":
        await store.add(make_row(name))
    await store.finish("c", COMPLETED)
    kept += [row for name in "abc" if (row := await store.get(name)) is not None]
    server.empty()
    added = await asyncio.gather(*(store.add(make_row(name)) for name in "defgh"))
    assert all(added)
    assert [row.request_id for row in await store.unfinished()] == list("abdefgh")
    assert await store.get("c") == kept[2]
    assert (await store.counts())["completed"] == 1
    await store.close()


async def test_settings_are_written_again_too_also_those_of_an_earlier_life(server: RedisServer) -> None:
    before = await RedisStore.open(server.url, list)
    await before.put_setting("model", "nano")
    await before.close()
    store = await RedisStore.open(server.url, list)
    await store.put_setting("loras", "[]")
    server.empty()
    await store.put_setting("loras", "[1]")
    assert await store.get_setting("model") == "nano"
    assert await store.get_setting("loras") == "[1]"
    server.empty()
    await store.add(make_row("a"))
    assert (await store.get_setting("model"), await store.get_setting("loras")) == ("nano", "[1]")
    await store.close()


async def test_changes_that_redis_lost_are_noticed_and_done_again(server: RedisServer) -> None:
    """As after a crash of a Redis that brings its changes to the disk once a second."""
    ended = make_row("a", status="completed", outcome="completed", completed_at=2_000.0)
    store = await RedisStore.open(server.url, lambda: [ended])
    await store.add(make_row("a"))
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        client.set(f"{PREFIX}:writes", 0)
    assert await store.add(make_row("b"))
    assert await store.get("a") == ended
    assert [row.request_id for row in await store.unfinished()] == ["b"]
    await store.close()


async def test_a_change_whose_answer_was_lost_is_done_once_and_answered_as_done(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await RedisStore.open(server.url, list)
    read = UnixDomainSocketConnection.read_response
    cut: list[int] = []

    async def lose_one_answer(self: UnixDomainSocketConnection, *args: Any, **kwargs: Any) -> Any:
        answer = await read(self, *args, **kwargs)
        if cut:
            cut.pop()
            raise redis.ConnectionError("cut off")
        return answer

    monkeypatch.setattr(UnixDomainSocketConnection, "read_response", lose_one_answer)
    cut.append(1)
    assert await store.add(make_row("a"))
    cut.append(1)
    assert await store.finish("a", COMPLETED)
    assert cut == []
    assert (await store.counts())["completed"] == 1
    assert not await store.finish("a", COMPLETED)
    await store.close()


async def test_a_store_of_another_version_is_refused_and_kept(server: RedisServer) -> None:
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        client.set(f"{PREFIX}:format", "99")
        with pytest.raises(StoreFormatError, match="format 99"):
            await RedisStore.open(server.url, list)
        assert client.get(f"{PREFIX}:format") == "99"


async def test_a_row_that_cannot_be_read_is_a_failed_job_and_harms_no_other(
    server: RedisServer,
) -> None:
    store = await RedisStore.open(server.url, list)
    await store.add(make_row("a"))
    await store.add(make_row("b"))
    with redis.Redis.from_url(server.url) as client:
        client.hset(f"{PREFIX}:job:a", "songs", "no JSON")
    assert [(row.request_id, row.outcome) for row in await store.unfinished()] == [("a", "failed"), ("b", None)]
    assert await store.finish("a", Ending("failed", 9.0))
    assert [row.request_id for row in await store.unfinished()] == ["b"]
    await store.close()


async def test_a_redis_that_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be reached"):
        await RedisStore.open(f"unix://{tmp_path}/nothing.sock", list)
    with pytest.raises(StorageError, match="URL"):
        await RedisStore.open("http://example.com", list)
