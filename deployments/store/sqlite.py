"""The job store in one SQLite file."""

import asyncio
import dataclasses
import json
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar, get_args

from deployments.messages import Status, StorageError
from deployments.store.protocol import Callback, Ending, JobRow, StoreDeposedError, StoreFormatError
from deployments.store.rows import row_of, row_or_failed, to_json

SCHEMA_VERSION = 3
SCHEMA = """
CREATE TABLE schema_version (version INTEGER NOT NULL);
CREATE TABLE jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    request_id TEXT NOT NULL UNIQUE,
    status TEXT NOT NULL,
    created_at REAL NOT NULL,
    songs TEXT NOT NULL,
    audio_format TEXT NOT NULL,
    request_json TEXT NOT NULL,
    key TEXT NOT NULL UNIQUE,
    request_digest TEXT NOT NULL,
    save_file INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    source TEXT,
    attempts INTEGER NOT NULL,
    started_at REAL,
    completed_at REAL,
    outcome TEXT,
    error TEXT,
    error_code TEXT,
    results TEXT NOT NULL,
    output_paths TEXT NOT NULL,
    callback TEXT NOT NULL
);
CREATE INDEX jobs_by_end ON jobs (completed_at);
CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
COLUMNS = tuple(field.name for field in dataclasses.fields(JobRow))
JSON_COLUMNS = ("songs", "request_json", "results", "output_paths", "callback")
BUSY_TIMEOUT_MS = 5_000  # another process may be reading a copy or checking the file

T = TypeVar("T")
Operation = Callable[[sqlite3.Connection], Any]


class SqliteStore:
    """A JobStore. One thread owns the connection; changes that wait at the same time share one commit to the disk."""

    def __init__(self, connection: sqlite3.Connection, thread: ThreadPoolExecutor) -> None:
        self._connection = connection
        self._thread = thread
        self._waiting: list[tuple[Operation, asyncio.Future[Any]]] = []
        self._writer: asyncio.Task[None] | None = None
        self.is_deposed = False

    def depose(self) -> None:
        self.is_deposed = True

    async def hold(self) -> None:
        """Return at once: the lock of the state folder keeps other services out."""

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Open the store, or make an empty one. Raises StoreFormatError for a damaged, foreign or newer file."""
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="job-store")
        try:
            connection = await asyncio.get_running_loop().run_in_executor(thread, _connect, path)
        except StorageError:
            thread.shutdown()
            raise
        return cls(connection, thread)

    async def add(self, row: JobRow) -> bool:
        marks = ", ".join("?" * len(COLUMNS))
        return await self._change(
            f"INSERT INTO jobs ({', '.join(COLUMNS)}) VALUES ({marks}) ON CONFLICT DO NOTHING",
            _to_columns(row),
        )

    async def get(self, request_id: str) -> JobRow | None:
        return await self._one("request_id = ?", request_id)

    async def find_key(self, key: str) -> JobRow | None:
        return await self._one("key = ?", key)

    async def _one(self, condition: str, value: str) -> JobRow | None:
        def read(db: sqlite3.Connection) -> JobRow | None:
            row = db.execute(_select(condition), (value,)).fetchone()
            return None if row is None else _from_columns(row)

        return await self._run(read)

    async def set_attempts(self, request_id: str, attempts: int) -> bool:
        return await self._change(
            "UPDATE jobs SET attempts = ? WHERE request_id = ? AND outcome IS NULL", (attempts, request_id)
        )

    async def claim_outputs(self, request_id: str, paths: Sequence[str]) -> bool:
        return await self._change(
            "UPDATE jobs SET output_paths = ? WHERE request_id = ? AND outcome IS NULL", (to_json(paths), request_id)
        )

    async def finish(self, request_id: str, ending: Ending, started_at: float | None = None) -> bool:
        end = (ending.status, ending.outcome, ending.at, ending.error, ending.error_code, to_json(ending.results))
        return await self._change(
            "UPDATE jobs SET started_at = ?, status = ?, outcome = ?, completed_at = ?, error = ?, error_code = ?,"
            " results = ? WHERE request_id = ? AND outcome IS NULL",
            (started_at, *end, request_id),
        )

    async def set_callback(self, request_id: str, callback: Callback | None) -> bool:
        return await self._change("UPDATE jobs SET callback = ? WHERE request_id = ?", (to_json(callback), request_id))

    async def callbacks(self) -> list[JobRow]:
        found = _select("callback != 'null' AND outcome IS NOT NULL ORDER BY completed_at")
        return await self._run(lambda db: [_from_columns(row) for row in db.execute(found)])

    async def unfinished(self) -> list[JobRow]:
        return await self._run(
            lambda db: [_from_columns(row) for row in db.execute(_select("outcome IS NULL ORDER BY seq"))]
        )

    async def counts(self) -> dict[Status, int]:
        def count(db: sqlite3.Connection) -> dict[Status, int]:
            rows = dict(db.execute("SELECT status, count(*) FROM jobs GROUP BY status").fetchall())
            return {status: rows.get(status, 0) for status in get_args(Status)}

        return await self._run(count)

    async def expire_results(self, completed_before: float) -> Sequence[str]:
        return await self._changed_ids(
            "UPDATE jobs SET outcome = 'expired' WHERE outcome = 'completed' AND completed_at < ? RETURNING request_id",
            completed_before,
        )

    async def expire(self, request_ids: Sequence[str]) -> None:
        statement = "UPDATE jobs SET outcome = 'expired' WHERE request_id = ? AND outcome = 'completed'"
        await self._run(lambda db: db.executemany(statement, [(request_id,) for request_id in request_ids]))

    async def remove_ended(self, completed_before: float) -> Sequence[str]:
        return await self._changed_ids(
            "DELETE FROM jobs WHERE outcome IS NOT NULL AND completed_at < ? RETURNING request_id", completed_before
        )

    async def get_setting(self, key: str) -> str | None:
        def read(db: sqlite3.Connection) -> str | None:
            row = db.execute("SELECT value FROM settings WHERE key = ?", (key,)).fetchone()
            return None if row is None else str(row["value"])

        return await self._run(read)

    async def put_setting(self, key: str, value: str) -> None:
        await self._run(lambda db: db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (key, value)))

    async def close(self) -> None:
        if self._writer is not None:
            await self._writer
        await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.close)
        self._thread.shutdown(wait=False)

    async def _change(self, statement: str, values: Sequence[object]) -> bool:
        return await self._run(lambda db: db.execute(statement, values).rowcount == 1)

    async def _changed_ids(self, statement: str, before: float) -> list[str]:
        return await self._run(lambda db: [row["request_id"] for row in db.execute(statement, (before,)).fetchall()])

    async def _run(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Run `operation` in the store's thread; its changes are on the disk when this returns."""
        if self.is_deposed:
            raise StoreDeposedError("another job manager has taken the state folder over")
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((operation, answer))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_waiting())
        return await answer

    async def _write_waiting(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            batch = [(operation, answer) for operation, answer in batch if not answer.cancelled()]
            operations = [operation for operation, _ in batch]
            results: list[Any]
            try:
                results = await asyncio.get_running_loop().run_in_executor(self._thread, self._commit, operations)
            except Exception as error:  # noqa: BLE001  callers must get an answer, whatever it is
                results = [error] * len(batch)
            for (_, answer), result in zip(batch, results, strict=True):
                _settle(answer, result)

    def _commit(self, operations: Sequence[Operation]) -> list[Any]:
        """Return the result of each operation, or the exception it failed with. Runs in the store's thread.

        A wrong operation fails alone: those that share its transaction are done again, one by one. What is wrong with
        the file, such as a lock or a full disk, fails all of them at once.
        """
        try:
            return self._transaction(operations)
        except sqlite3.OperationalError as error:
            return [_unusable(error)] * len(operations)
        except Exception as error:  # noqa: BLE001  it is the caller's to handle
            if len(operations) > 1:
                return [result for operation in operations for result in self._commit([operation])]
            return [_unusable(error) if isinstance(error, sqlite3.Error) else error]

    def _transaction(self, operations: Sequence[Operation]) -> list[Any]:
        """Do all operations or none."""
        db = self._connection
        if db.in_transaction:  # an earlier rollback failed
            db.execute("ROLLBACK")
        try:
            db.execute("BEGIN IMMEDIATE")
            results = [operation(db) for operation in operations]
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        return results


def _unusable(error: sqlite3.Error) -> StorageError:
    return StorageError(f"the job store cannot be used just now: {error}")


def _settle(answer: "asyncio.Future[Any]", result: object) -> None:
    if answer.done():
        return
    if isinstance(result, Exception):
        answer.set_exception(result)
    else:
        answer.set_result(result)


def _connect(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    except (OSError, sqlite3.Error) as error:
        raise StorageError(f"the job store {path} cannot be opened: {error}") from error
    connection.row_factory = sqlite3.Row
    try:
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        _check_format(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
    except sqlite3.OperationalError as error:
        connection.close()
        raise StorageError(f"the job store {path} cannot be opened: {error}") from error
    except sqlite3.DatabaseError as error:
        connection.close()
        raise StoreFormatError(_refusal(path, f"is damaged or no job store ({error})")) from error
    except StoreFormatError:
        connection.close()
        raise
    return connection


def _check_format(db: sqlite3.Connection, path: Path) -> None:
    """Make the tables of an empty file; raise StoreFormatError for a file of another kind."""
    tables = {row["name"] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        db.executescript(f"BEGIN IMMEDIATE; {SCHEMA} INSERT INTO schema_version VALUES ({SCHEMA_VERSION}); COMMIT;")
        return
    if "schema_version" not in tables:
        raise StoreFormatError(_refusal(path, "belongs to another program"))
    version = db.execute("SELECT version FROM schema_version").fetchone()["version"]
    if version != SCHEMA_VERSION:
        raise StoreFormatError(_refusal(path, f"has format {version}, this version reads format {SCHEMA_VERSION}"))
    problem = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if problem != "ok":
        raise StoreFormatError(_refusal(path, f"is damaged ({problem})"))


def _refusal(path: Path, problem: str) -> str:
    return f"the job store {path} {problem}; it was left as it is: move it away to start with an empty one"


def _select(condition: str) -> str:
    return f"SELECT {', '.join(COLUMNS)} FROM jobs WHERE {condition}"


def _to_columns(row: JobRow) -> list[object]:
    values = {name: getattr(row, name) for name in COLUMNS}
    values |= {name: to_json(values[name]) for name in JSON_COLUMNS}
    return [values[name] for name in COLUMNS]


def _from_columns(row: sqlite3.Row) -> JobRow:
    values = dict(row)

    def read() -> JobRow:
        decoded = {name: json.loads(values[name]) for name in JSON_COLUMNS}
        return row_of(values | decoded | {"save_file": bool(values["save_file"])})

    return row_or_failed(read, values["request_id"], values)
