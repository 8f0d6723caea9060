"""Job stores, and rows to put into them."""

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from acestep_engine.params import Adapter, GenerationParams
from deployments.store.protocol import JobRow, JobStore
from deployments.store.redis import RedisStore
from deployments.store.sqlite import SqliteStore
from tests.deployments.house import House
from tests.deployments.receiver import Receiver
from tests.redis_server import RedisServer

OpenStore = Callable[[], Awaitable[JobStore]]


def make_row(request_id: str, **changes: object) -> JobRow:
    params = GenerationParams("piano", "[verse]\nla 🎹 ﷽", 10.0, 2**64 - 1, oss_steps=(1, 5), vocal_language="de")
    params = dataclasses.replace(params, adapter=Adapter("rap", "ab" * 32, "/srv/loras/rap", -0.5))
    row = JobRow(
        request_id,
        "pending",
        1_000.0,
        (params,),
        "flac",
        {"prompt": "piano", "manual_seeds": [2**64 - 1]},
        f"key of {request_id}",
    )
    return dataclasses.replace(row, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture(params=["sqlite", "redis"])
async def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OpenStore]:
    """Opens the same store again and again; each backend that keeps jobs is one parameter here."""
    opened: list[JobStore] = []
    server: RedisServer | None = None
    if request.param == "redis":
        server = request.getfixturevalue("redis_server")
        server.empty()

    async def open_it() -> JobStore:
        if opened:
            await opened.pop().close()
        if server is not None:
            opened.append(await RedisStore.open(server.url, list))
        else:
            opened.append(await SqliteStore.open(tmp_path / "state" / "jobs.sqlite3"))
        return opened[0]

    yield open_it
    for store in opened:
        await store.close()


@pytest.fixture
async def store(open_store: OpenStore) -> JobStore:
    return await open_store()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = House(tmp_path)
    await house.open()
    yield house
    await house.close()
