"""The SQLite store's file: what it refuses, and what it does while it cannot be written."""

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from deployments.messages import StorageError
from deployments.store import sqlite
from deployments.store.protocol import Ending, StoreDeposedError, StoreFormatError
from deployments.store.rows import DAMAGED
from deployments.store.sqlite import SqliteStore
from tests.deployments.conftest import make_row


async def test_a_file_that_is_no_database_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite3"
    path.write_bytes(b"not a database, but somebody's" * 100)
    with pytest.raises(StoreFormatError, match="left as it is"):
        await SqliteStore.open(path)
    assert path.read_bytes() == b"not a database, but somebody's" * 100


async def test_a_damaged_store_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite3"
    store = await SqliteStore.open(path)
    await asyncio.gather(*(store.add(make_row(f"{i}")) for i in range(200)))
    await store.close()
    content = bytearray(path.read_bytes())
    content[3 * 4096 : 5 * 4096] = b"\xff" * 2 * 4096
    path.write_bytes(content)
    with pytest.raises(StoreFormatError, match="damaged"):
        await SqliteStore.open(path)
    assert path.read_bytes() == content


async def test_a_store_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite3"
    await (await SqliteStore.open(path)).close()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE schema_version SET version = 7")
    with pytest.raises(StoreFormatError, match="has format 7, this version reads format 3"):
        await SqliteStore.open(path)


async def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite3"
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE photos (name TEXT)")
    with pytest.raises(StoreFormatError, match="another program"):
        await SqliteStore.open(path)


async def test_commits_reach_the_disk(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "jobs.sqlite3")
    pragmas = [store._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert pragmas == ["wal", 2]  # 2: FULL
    await store.close()


async def test_a_locked_file_fails_the_call_and_leaves_the_event_loop_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_MS", 300)
    store = await SqliteStore.open(tmp_path / "jobs.sqlite3")
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        adding = asyncio.create_task(store.add(make_row("a")))
        started = time.perf_counter()
        await asyncio.sleep(0.01)
        assert time.perf_counter() - started < 0.2
        with pytest.raises(StorageError, match="locked"):
            await adding
        other.execute("ROLLBACK")
    await store.add(make_row("a"))
    await store.close()


async def test_one_wrong_change_does_not_fail_those_beside_it(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "jobs.sqlite3")
    rows = [make_row("a"), make_row("b", audio_format=None), make_row("c")]
    answers = await asyncio.gather(*(store.add(row) for row in rows), return_exceptions=True)
    assert [type(answer) for answer in answers] == [bool, StorageError, bool]
    assert [row.request_id for row in await store.unfinished()] == ["a", "c"]
    await store.close()


async def test_what_fails_outside_of_the_database_fails_alone_and_leaves_no_transaction_open(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "jobs.sqlite3")
    rows = [make_row("a"), make_row("b", audio_format="\ud800"), make_row("c")]  # no UTF-8
    answers = await asyncio.gather(*(store.add(row) for row in rows), return_exceptions=True)
    assert [type(answer) for answer in answers] == [bool, UnicodeEncodeError, bool]
    assert await store.add(make_row("d"))
    assert [row.request_id for row in await store.unfinished()] == ["a", "c", "d"]
    await store.close()


@pytest.mark.parametrize(
    "songs", ['[{"prompt": "", "lyrics": "", "duration_s": 1.0, "oss_steps": [], "colour": 3}]', "no JSON", "5", "[5]"]
)
async def test_a_row_that_cannot_be_read_is_a_failed_job_and_harms_no_other(tmp_path: Path, songs: str) -> None:
    store = await SqliteStore.open(tmp_path / "jobs.sqlite3")
    await store.add(make_row("a", key="mine", request_digest="d"))
    await store.add(make_row("b"))
    await store._run(lambda db: db.execute("UPDATE jobs SET songs = ? WHERE request_id = 'a'", (songs,)))
    read, added = await asyncio.gather(store.get("a"), store.add(make_row("c")))
    assert added
    assert read is not None
    assert (read.outcome, read.error, read.request_digest) == ("failed", DAMAGED, "d")
    assert await store.find_key("mine") == read
    assert [(row.request_id, row.ended) for row in await store.unfinished()] == [
        ("a", True),
        ("b", False),
        ("c", False),
    ]
    assert await store.finish("a", Ending("failed", 9.0, error=read.error))
    assert [row.request_id for row in await store.unfinished()] == ["b", "c"]
    await store.close()


async def test_a_deposed_store_refuses_everything(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "jobs.sqlite3")
    await store.add(make_row("a"))
    store.depose()
    with pytest.raises(StoreDeposedError):
        await store.set_attempts("a", 1)
    await store.close()


async def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be opened"):
        await SqliteStore.open(tmp_path / "file" / "jobs.sqlite3")
