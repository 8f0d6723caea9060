"""Disks that are full, read-only or gone, and a store that is locked or damaged."""

import resource
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.faults.campaign import Fault, NotStagedError, Stage
from tests.faults.ledger import LONG
from tests.faults.processes import locked, one_machine

PAGE = 4096


def output_disk_full(stage: Stage) -> float:
    with mounted(stage.application.outputs, "size=64k"):
        _fails_for_storage(stage)
    return _until_songs_are_made(stage)


def output_folder_read_only(stage: Stage) -> float:
    with mounted(stage.application.outputs, "ro"):
        _fails_for_storage(stage)
    return _until_songs_are_made(stage)


def output_folder_gone(stage: Stage) -> float:
    """Moved away while songs are made: it is made anew."""
    outputs = stage.application.outputs
    aside = outputs.with_name("aside")
    stage.ledger.until_ended(stage.ledger.submit())
    outputs.rename(aside)
    time.sleep(1.0)  # the names of files tell the second: those of then must not come again
    recovery_s = _until_songs_are_made(stage)
    for path in aside.iterdir():
        path.rename(outputs / path.name)
    aside.rmdir()
    return recovery_s


def result_disk_full(stage: Stage) -> float:
    with mounted(stage.application.state / "results", "size=64k"):
        _fails_for_storage(stage)
    return _until_songs_are_made(stage)


def store_disk_full(stage: Stage) -> float:
    """No file of the JobManager may grow past a page: SQLite is told that there is no room."""
    stage.ledger.until_ended(stage.ledger.submit())
    pid = stage.application.pid_of("JobManager")
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (PAGE, before[1]))
    try:
        answers = [stage.ledger.try_to_submit() for _ in range(5)]
        assert answers == [503] * 5, answers
        assert stage.ledger.get("/health").status_code == 200
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
    return _until_songs_are_made(stage)


def store_locked(stage: Stage) -> float:
    """For longer than the store waits, while a song is made: nothing is accepted, and nothing is lost."""
    running = stage.ledger.submit(LONG)
    stage.ledger.until_running(running)
    with locked(stage.application.store):
        refused = stage.ledger.try_to_submit()
        assert refused == 503, refused
        accepted: list[str] = []
        patient = threading.Thread(target=lambda: accepted.append(stage.ledger.submit()))
        patient.start()
        time.sleep(2.0)
    unlocked_at = time.monotonic()
    patient.join()
    recovery_s = time.monotonic() - unlocked_at
    assert [stage.ledger.until_ended(one) for one in (running, *accepted)] == ["completed"] * 2
    return recovery_s


def store_corrupted(stage: Stage) -> float:
    """It refuses to start and keeps the file; with the good file it goes on."""
    waiting = stage.ledger.submit(LONG)
    stage.application.stop()
    stage.application.kill_everything()
    store = stage.application.store
    good = store.with_name("good")
    shutil.copyfile(store, good)
    with store.open("r+b") as file:
        file.seek(PAGE)
        file.write(b"\xa5" * PAGE)
    damaged = store.read_bytes()
    said = stage.application.refuses_to_start()
    assert "damaged" in said, said[-2000:]
    assert store.read_bytes() == damaged, "the damaged file was changed"
    good.replace(store)
    started_at = time.monotonic()
    stage.application.start()
    stage.ledger.until_running(waiting)
    return time.monotonic() - started_at


def row_damaged(stage: Stage) -> float:
    """One row of a waiting job cannot be read any more: that job fails, and all others are made."""
    running, damaged, waiting = (stage.ledger.submit() for _ in range(3))
    stage.application.stop()
    stage.application.kill_everything()
    with closing(sqlite3.connect(stage.application.store)) as db, db:
        changed = db.execute(
            "UPDATE jobs SET songs = 'no JSON' WHERE request_id = ? AND outcome IS NULL", (damaged,)
        ).rowcount
    started_at = time.monotonic()
    stage.application.start()
    assert [stage.ledger.until_ended(one) for one in (running, waiting)] == ["completed"] * 2
    recovery_s = time.monotonic() - started_at
    if not changed:
        raise NotStagedError("the job had ended already")
    assert stage.ledger.until_ended(damaged) == "failed"
    assert stage.ledger.entries[damaged].error_code == "internal_error"
    return recovery_s


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """An empty file system in memory over a folder. Raises NotStagedError where we may not mount."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotStagedError(f"mounting is not allowed here ({done.stderr.strip()})")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _fails_for_storage(stage: Stage) -> None:
    request_id = stage.ledger.submit()
    assert stage.ledger.until_ended(request_id) == "failed"
    assert stage.ledger.entries[request_id].error_code == "storage"


def _until_songs_are_made(stage: Stage) -> float:
    started_at = time.monotonic()
    assert stage.ledger.until_ended(stage.ledger.submit()) == "completed"
    return time.monotonic() - started_at


FAULTS = [
    Fault("output disk full", output_disk_full, one_machine, is_fast=True),
    Fault("output folder read-only", output_folder_read_only, one_machine),
    Fault("output folder gone", output_folder_gone, one_machine, is_fast=True),
    Fault("disk of the results full", result_disk_full, one_machine),
    Fault("store disk full", store_disk_full, one_machine, is_fast=True),
    Fault("SQLite locked", store_locked, one_machine),
    Fault("SQLite corrupted", store_corrupted, one_machine, times=1),
    Fault("a row that cannot be read", row_damaged, one_machine, times=2),
]
