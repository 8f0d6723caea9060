"""The job store in Redis: for a cluster whose JobManager may come up on any of its nodes.

Every change is a script, so that it happens whole or not at all. Each opening of the store takes it over from earlier
JobManagers of the same service, which are refused from then on: one that was cut off and comes back changes nothing any
more.
"""

import asyncio
import json
import logging
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Self, get_args

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from deployments.messages import Status, StorageError
from deployments.store.protocol import Callback, Ending, JobRow, StoreDeposedError, StoreFormatError
from deployments.store.rows import from_texts, row_or_failed, to_json, to_texts
from deployments.store.urls import ENCODE, url_problem

FORMAT = "2"
PREFIX = "{ace-step}"  # in braces, so that a Redis Cluster keeps all of it in one place
CONNECTIONS = 16
TIMEOUT_S = 5.0
HELD_S = 10.0  # after which a service that ended without a word no longer keeps others out
HOLD_AGAIN_S = 3.0
HELD_POLL_S = 0.2
TAKE_OVER_WITHIN_S = 60.0  # while Serve replaces a JobManager, two of them live for a moment
RETRIES = 2
READ_AT_ONCE = 200
DEPOSED = "another job manager has taken the job store over"

logger = logging.getLogger("ray.serve")

# Refuses a caller that no longer owns the store, and one whose last change is not there any more; counts the change.
GUARD = """
local prefix, owner, seen = KEYS[1], ARGV[1], tonumber(ARGV[2])
local writes = tonumber(redis.call('GET', prefix .. ':writes') or '0')
if writes < seen then return redis.error_reply('ROLLED_BACK') end
if redis.call('GET', prefix .. ':owner') ~= owner then return redis.error_reply('DEPOSED') end
local function job(id) return prefix .. ':job:' .. id end
local function open(id)
  local found = redis.call('HMGET', job(id), 'request_id', 'outcome')
  return found[1] and found[2] == 'null'
end
local function count(status, change) redis.call('HINCRBY', prefix .. ':counts', status, change) end
local function ended(id, fields)
  redis.call('ZADD', prefix .. ':ended', fields['completed_at'], id)
  if fields['outcome'] == '"completed"' then redis.call('ZADD', prefix .. ':completed', fields['completed_at'], id) end
  if redis.call('HGET', job(id), 'callback') ~= 'null' then
    redis.call('ZADD', prefix .. ':callbacks', fields['completed_at'], id)
  end
end
local function expire(id)
  if redis.call('ZREM', prefix .. ':completed', id) == 1 then redis.call('HSET', job(id), 'outcome', '"expired"') end
end
local function answer(value) return {redis.call('INCR', prefix .. ':writes'), value} end
"""

TAKE_OVER = """
local prefix, format, service = KEYS[1], ARGV[1], ARGV[3]
local held_by = redis.call('GET', prefix .. ':held_by')
if held_by and held_by ~= service then return redis.error_reply('HELD') end
local found = redis.call('GET', prefix .. ':format')
if found and found ~= format then return redis.error_reply('FORMAT ' .. found) end
redis.call('SET', prefix .. ':format', format)
redis.call('SET', prefix .. ':owner', ARGV[2])
redis.call('SET', prefix .. ':held_by', service, 'PX', ARGV[4])
local last = redis.call('ZRANGE', prefix .. ':unfinished', -1, -1, 'WITHSCORES')[2] or '0'
return {tonumber(redis.call('GET', prefix .. ':writes') or '0'), tonumber(last)}
"""

ADD = (
    GUARD
    + """
local id, fields = ARGV[3], cjson.decode(ARGV[4])
if redis.call('EXISTS', job(id)) == 1 then  -- 1 for the same call again, which did not hear its first answer
  return answer(redis.call('HGET', job(id), '_added_by') == ARGV[5] and 1 or 0)
end
if redis.call('HSETNX', prefix .. ':keys', fields['key'], id) == 0 then return answer(0) end
redis.call('HSET', job(id), '_added_by', ARGV[5])
for name, text in pairs(fields) do redis.call('HSET', job(id), name, text) end
count(fields['status'], 1)
if fields['outcome'] == 'null' then
  redis.call('ZADD', prefix .. ':unfinished', ARGV[6], id)
else
  ended(id, fields)
end
return answer(1)
"""
)

CHANGE = (
    GUARD
    + """
local id = ARGV[3]
if not open(id) then return answer(0) end
for name, text in pairs(cjson.decode(ARGV[4])) do redis.call('HSET', job(id), name, text) end
return answer(1)
"""
)

FINISH = (
    GUARD
    + """
local id = ARGV[3]
local fields = cjson.decode(ARGV[4])
if not open(id) then return answer(redis.call('HGET', job(id), '_ended_by') == ARGV[5] and 1 or 0) end
redis.call('HSET', job(id), '_ended_by', ARGV[5])
count(redis.call('HGET', job(id), 'status'), -1)
count(fields['status'], 1)
for name, text in pairs(fields) do redis.call('HSET', job(id), name, text) end
redis.call('ZREM', prefix .. ':unfinished', id)
ended(id, fields)
return answer(1)
"""
)

SET_CALLBACK = (
    GUARD
    + """
local id = ARGV[3]
if redis.call('EXISTS', job(id)) == 0 then return answer(0) end
redis.call('HSET', job(id), 'callback', ARGV[4])
if ARGV[4] == 'null' then redis.call('ZREM', prefix .. ':callbacks', id) end
return answer(1)
"""
)

EXPIRE = (
    GUARD
    + """
local ids = redis.call('ZRANGEBYSCORE', prefix .. ':completed', '-inf', '(' .. ARGV[3])
for _, id in ipairs(ids) do expire(id) end
return answer(ids)
"""
)

EXPIRE_THESE = (
    GUARD
    + """
for _, id in ipairs(cjson.decode(ARGV[3])) do expire(id) end
return answer(1)
"""
)

REMOVE = (
    GUARD
    + """
local ids = redis.call('ZRANGEBYSCORE', prefix .. ':ended', '-inf', '(' .. ARGV[3])
for _, id in ipairs(ids) do
  count(redis.call('HGET', job(id), 'status'), -1)
  redis.call('HDEL', prefix .. ':keys', redis.call('HGET', job(id), 'key'))
  redis.call('DEL', job(id))
  for _, set in ipairs({':ended', ':completed', ':callbacks'}) do redis.call('ZREM', prefix .. set, id) end
end
return answer(ids)
"""
)

HOLD = (
    GUARD
    + """
redis.call('SET', prefix .. ':held_by', ARGV[3], 'PX', ARGV[4])
return answer(1)
"""
)

LET_GO = (
    GUARD
    + """
redis.call('DEL', prefix .. ':held_by')
return answer(1)
"""
)

PUT_SETTING = (
    GUARD
    + """
redis.call('HSET', prefix .. ':settings', ARGV[3], ARGV[4])
return answer(1)
"""
)


class _HeldError(StorageError):
    """Another service uses the store."""


class _RolledBackError(StorageError):
    """Changes that the store had confirmed are gone; nothing was changed."""


class RedisStore:
    """A JobStore. Durable as far as Redis is: with `appendfsync everysec` a crash of Redis may lose its last second.

    `service` names the application: its JobManagers take the store over from each other, and never from another
    application's that is alive.

    When a change finds earlier ones missing, what `known` answers is written first: the rows of all jobs that have not
    ended, and of those that have lately. So are all settings.
    """

    def __init__(self, client: Redis, known: Callable[[], Sequence[JobRow]], service: str) -> None:
        self._redis = client
        self._service = service
        self._known = known
        self._restoring = asyncio.Lock()
        self._settings: dict[str, str] = {}  # as they are kept, to be written again
        self._owner = ""
        self.is_deposed = False
        self._writes = 0  # changes of the store that this one has seen
        self._last_number = 0  # of the job that was added last

    @classmethod
    async def open(cls, url: str, known: Callable[[], Sequence[JobRow]], service: str = "") -> Self:
        """Connect and take the store over, as soon as no other service uses it.

        Raises StorageError, also if one goes on using it; StoreFormatError for a store of another version.
        """
        problem = url_problem(url)
        if problem is not None:
            raise StorageError(problem)
        try:
            pool: BlockingConnectionPool = BlockingConnectionPool.from_url(
                url,
                max_connections=CONNECTIONS,
                decode_responses=True,
                socket_timeout=TIMEOUT_S,
                socket_connect_timeout=TIMEOUT_S,
                retry=Retry(ExponentialBackoff(cap=1.0, base=0.1), RETRIES),
                retry_on_error=[RedisConnectionError, RedisTimeoutError],
            )
        except ValueError:  # its text may hold a part of the password
            raise StorageError(f"the job store's URL cannot be used: {ENCODE}") from None
        store = cls(Redis.from_pool(pool), known, service)
        try:
            await store._take_over_when_free()
            store._settings = await store._read(lambda: store._redis.hgetall(f"{PREFIX}:settings"))
        except StorageError:
            await store.close()
            raise
        return store

    async def add(self, row: JobRow) -> bool:
        return bool(await self._change(ADD, *self._to_add(row)))

    async def get(self, request_id: str) -> JobRow | None:
        return (await self._rows([request_id]))[0]

    async def find_key(self, key: str) -> JobRow | None:
        found = await self._read(lambda: self._redis.hget(f"{PREFIX}:keys", to_json(key)))
        return None if found is None else await self.get(found)

    async def set_attempts(self, request_id: str, attempts: int) -> bool:
        return bool(await self._change(CHANGE, request_id, _fields(attempts=attempts)))

    async def claim_outputs(self, request_id: str, paths: Sequence[str]) -> bool:
        return bool(await self._change(CHANGE, request_id, _fields(output_paths=paths)))

    async def finish(self, request_id: str, ending: Ending, started_at: float | None = None) -> bool:
        return bool(await self._change(FINISH, *_to_finish(request_id, ending, started_at)))

    async def set_callback(self, request_id: str, callback: Callback | None) -> bool:
        return bool(await self._change(SET_CALLBACK, request_id, to_json(callback)))

    async def callbacks(self) -> list[JobRow]:
        return await self._listed("callbacks")

    async def unfinished(self) -> list[JobRow]:
        return await self._listed("unfinished")

    async def _listed(self, name: str) -> list[JobRow]:
        """The rows of one of the sorted sets, in its order."""
        ids = await self._read(lambda: self._redis.zrange(f"{PREFIX}:{name}", 0, -1))
        rows: list[JobRow] = []
        for start in range(0, len(ids), READ_AT_ONCE):
            rows += [row for row in await self._rows(ids[start : start + READ_AT_ONCE]) if row is not None]
        return rows

    async def counts(self) -> dict[Status, int]:
        found = await self._read(lambda: self._redis.hgetall(f"{PREFIX}:counts"))
        return {status: int(found.get(to_json(status), 0)) for status in get_args(Status)}

    async def expire_results(self, completed_before: float) -> Sequence[str]:
        return list(await self._change(EXPIRE, repr(completed_before)))

    async def expire(self, request_ids: Sequence[str]) -> None:
        await self._change(EXPIRE_THESE, json.dumps(request_ids))

    async def remove_ended(self, completed_before: float) -> Sequence[str]:
        return list(await self._change(REMOVE, repr(completed_before)))

    async def get_setting(self, key: str) -> str | None:
        found: str | None = await self._read(lambda: self._redis.hget(f"{PREFIX}:settings", key))
        return found

    async def put_setting(self, key: str, value: str) -> None:
        while True:
            async with self._restoring:
                owner = self._owner
            await self._change(PUT_SETTING, key, value)
            self._settings[key] = value
            if owner == self._owner:  # else the old value may have been written again meanwhile
                return

    def depose(self) -> None:
        self.is_deposed = True

    async def hold(self) -> None:
        while not self.is_deposed:
            try:
                await self._change(HOLD, self._service, str(int(1000 * HELD_S)))
            except StoreDeposedError as error:
                logger.error("%s", error)
            except StorageError as error:
                logger.warning("%s", error)
            await asyncio.sleep(HOLD_AGAIN_S)

    async def close(self) -> None:
        if self._owner and not self.is_deposed:
            with suppress(StorageError):  # then others wait a little longer
                await self._once(LET_GO)
        await self._redis.aclose()

    async def _restore(self, lost_by: str) -> None:
        """Take the store over again and bring it to what is known, unless somebody has since the change of `lost_by`.

        A job that is there and has ended stays; one that has not and is known to have ended, ends.
        """
        async with self._restoring:
            if self._owner != lost_by:
                return
            rows = self._known()
            logger.warning("the job store has lost its last changes: %d jobs are written again", len(rows))
            await self._take_over()
            for key, value in [*self._settings.items()]:
                await self._once(PUT_SETTING, key, value)
            for row in rows:
                await self._once(ADD, *self._to_add(row))
                if row.outcome is not None and row.completed_at is not None:
                    ending = Ending(row.outcome, row.completed_at, row.results, row.error, row.error_code)
                    await self._once(FINISH, *_to_finish(row.request_id, ending, row.started_at))
                    await self._once(SET_CALLBACK, row.request_id, to_json(row.callback))

    async def _take_over_when_free(self) -> None:
        """Raises StorageError, StoreFormatError."""
        clock_now = asyncio.get_running_loop().time
        deadline = clock_now() + TAKE_OVER_WITHIN_S
        while True:
            try:
                return await self._take_over()
            except _HeldError:
                if clock_now() > deadline:
                    raise
            await asyncio.sleep(HELD_POLL_S)

    async def _take_over(self) -> None:
        """Raises _HeldError, StorageError, StoreFormatError."""
        owner = uuid.uuid4().hex
        try:
            self._writes, self._last_number = await self._read(
                lambda: self._redis.eval(TAKE_OVER, 1, PREFIX, FORMAT, owner, self._service, str(int(1000 * HELD_S)))
            )
        except ResponseError as error:
            if "HELD" in str(error):
                raise _HeldError("another service uses the job store: stop it, or set another `store`") from error
            if str(error).startswith("FORMAT"):
                formats = f"has format {str(error).removeprefix('FORMAT ')}, this version reads format {FORMAT}"
                raise StoreFormatError(f"the job store in Redis {formats}; it was left as it is") from error
            raise StorageError(f"the job store cannot be used just now: {error}") from error
        self._owner = owner

    def _to_add(self, row: JobRow) -> tuple[str, ...]:
        self._last_number += 1  # counted here, because calls made together may arrive in another order
        return row.request_id, json.dumps(to_texts(row)), uuid.uuid4().hex, str(self._last_number)

    async def _change(self, script: str, *arguments: str) -> Any:
        """Run a script that begins with GUARD, after what the store has lost is written again; its answer."""
        while True:
            if self.is_deposed:
                raise StoreDeposedError(DEPOSED)
            owner = self._owner
            try:
                return await self._once(script, *arguments)
            except _RolledBackError:
                try:
                    await self._restore(owner)
                except (StoreDeposedError, _HeldError):
                    self.is_deposed = True
            except StoreDeposedError:
                async with self._restoring:  # if it takes the store over just now, it was deposed by itself
                    if owner == self._owner:
                        self.is_deposed = True

    async def _once(self, script: str, *arguments: str) -> Any:
        guard = self._owner, str(self._writes)
        try:
            writes, answer = await self._read(lambda: self._redis.eval(script, 1, PREFIX, *guard, *arguments))
        except ResponseError as error:
            if "ROLLED_BACK" in str(error):
                raise _RolledBackError("the job store has lost its last changes") from error
            if "DEPOSED" in str(error):
                raise StoreDeposedError(DEPOSED) from error
            raise StorageError(f"the job store cannot be used just now: {error}") from error
        self._writes = max(self._writes, writes)
        return answer

    async def _rows(self, request_ids: Sequence[str]) -> list[JobRow | None]:
        async def read() -> list[dict[str, str]]:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for request_id in request_ids:
                    pipeline.hgetall(f"{PREFIX}:job:{request_id}")
                found: list[dict[str, str]] = await pipeline.execute()
            return found

        found = [{name: texts[name] for name in texts if not name.startswith("_")} for texts in await self._read(read)]
        return [
            row_or_failed(partial(from_texts, texts), request_id, {}) if texts else None
            for request_id, texts in zip(request_ids, found, strict=True)
        ]

    @staticmethod
    async def _read(call: Callable[[], Any]) -> Any:
        """What Redis answers. Raises StorageError when it does not; ResponseError when it refuses."""
        try:
            return await call()
        except ResponseError:
            raise
        except (RedisError, OSError) as error:
            raise StorageError(f"the job store cannot be reached just now: {type(error).__name__}") from error


def _to_finish(request_id: str, ending: Ending, started_at: float | None) -> tuple[str, ...]:
    fields = _fields(
        status=ending.status,
        outcome=ending.outcome,
        started_at=started_at,
        completed_at=ending.at,
        results=ending.results,
        error=ending.error,
        error_code=ending.error_code,
    )
    return request_id, fields, uuid.uuid4().hex


def _fields(**values: object) -> str:
    """Some fields of a row, as the scripts take them: JSON of names to JSON texts."""
    return json.dumps({name: to_json(value) for name, value in values.items()})
