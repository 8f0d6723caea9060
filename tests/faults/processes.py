"""Processes that are killed, frozen or told to stop."""

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path

from tests.faults.application import Application
from tests.faults.campaign import Fault, Stage
from tests.faults.ledger import LONG, SHORT, in_parallel, step_of

LEASE_S = 10.0
WINDOW_POLL_S = 0.001
IDLE_CPUS = 0.3  # what a Generator uses at most that makes no song
TOGETHER_S = 0.2  # jobs that begin within so little time begin at once
PRIORITIES = (5,) * 8 + (5, 2, 9, 5, 7, 2, 9, 5)  # of jobs in the order they are submitted; eight run at once


@contextmanager
def one_machine(folder: Path) -> Iterator[Application]:
    """As a laptop runs it: SQLite, one Generator."""
    with Application(folder, {"jobs": {"lease_s": LEASE_S}}) as application:
        yield application


def generator_killed_mid_step(stage: Stage) -> float:
    request_id = stage.ledger.submit(LONG)
    stage.ledger.until_running(request_id)
    killed_at = stage.application.kill("Generator")
    stage.ledger.until_running_again(request_id)
    return time.monotonic() - killed_at


def generator_killed_after_the_file(stage: Stage) -> float:
    return _killed_before_commit(stage, "Generator")


def job_manager_killed_after_the_file(stage: Stage) -> float:
    return _killed_before_commit(stage, "JobManager")


def _killed_before_commit(stage: Stage, role: str) -> float:
    """While the store is locked by another process, a song's file gets written and its end does not."""
    request_id = stage.ledger.submit(LONG)
    stage.ledger.until_running(request_id)
    with locked(stage.application.store):
        wait_for_file(stage.application.state / "results" / f"{request_id}_0.wav")
        killed_at = stage.application.kill(role)
    assert stage.ledger.until_ended(request_id) == "completed"
    return time.monotonic() - killed_at


def job_manager_killed_while_it_publishes(stage: Stage) -> float:
    request_id = stage.ledger.submit()
    wait_for_row(stage.application.store, "request_id = ? AND output_paths != '[]'", request_id)
    killed_at = stage.application.kill("JobManager")
    assert stage.ledger.until_ended(request_id) == "completed"
    return time.monotonic() - killed_at


def generator_and_job_manager_killed_after_commit(stage: Stage) -> float:
    request_id = stage.ledger.submit()
    wait_for_row(stage.application.store, "request_id = ? AND outcome IS NOT NULL", request_id)
    killed_at = stage.application.kill("Generator")
    stage.application.kill("JobManager")
    assert stage.ledger.until_ended(request_id) == "completed"
    assert stage.ledger.until_ended(stage.ledger.submit()) == "completed"
    return time.monotonic() - killed_at


def text_encoder_killed(stage: Stage) -> float:
    jobs = [stage.ledger.submit(SHORT, prompt=f"piano {time.monotonic()}") for _ in range(2)]
    killed_at = stage.application.kill("TextEncoder")
    jobs += [stage.ledger.submit(SHORT, prompt=f"drums {time.monotonic()}") for _ in range(2)]
    assert [stage.ledger.until_ended(request_id) for request_id in jobs] == ["completed"] * 4
    return time.monotonic() - killed_at


def ingress_killed_after_commit(stage: Stage) -> float:
    """The client never hears that its job was accepted, and asks again with the same key."""
    before = _count(stage.application.store)
    accepted: list[str] = []
    client = threading.Thread(target=lambda: accepted.append(stage.ledger.submit()))
    client.start()
    while _count(stage.application.store) == before:
        time.sleep(WINDOW_POLL_S)
    killed_at = stage.application.kill("Ingress")
    client.join()
    recovery_s = time.monotonic() - killed_at
    assert stage.ledger.until_ended(accepted[0]) == "completed"
    assert _count(stage.application.store) == before + 1, "the same key made two jobs"
    return recovery_s


def job_manager_killed(stage: Stage) -> float:
    running, waiting = stage.ledger.submit(LONG), [stage.ledger.submit() for _ in range(3)]
    stage.ledger.until_running(running)
    killed_at = stage.application.kill("JobManager")
    stage.ledger.until_running_again(running)
    recovery_s = time.monotonic() - killed_at
    assert [stage.ledger.until_ended(one) for one in (running, *waiting)] == ["completed"] * 4
    return recovery_s


def state_folder_taken_over(stage: Stage) -> float:
    """The lock of the state folder is another file now: the JobManager leaves its songs to the next one."""
    running, manager = stage.ledger.submit(LONG), stage.application.pid_of("JobManager")
    stage.ledger.until_running(running)
    taken_at = time.monotonic()
    (stage.application.state / "lock").unlink()
    stage.ledger.until_running_again(running)
    recovery_s = time.monotonic() - taken_at
    assert stage.application.pid_of("JobManager") != manager
    assert stage.ledger.until_ended(running) == "completed"
    return recovery_s


def job_manager_killed_while_clients_wait(stage: Stage) -> float:
    """They hear a slower answer, and no error."""
    answers: list[int] = []
    clients = threading.Thread(
        target=lambda: answers.extend(in_parallel(stage.ledger.make, [LONG, SHORT, LONG, SHORT]))
    )
    clients.start()
    time.sleep(1.0)  # some run, some wait, one may be on its way
    killed_at = stage.application.kill("JobManager")
    clients.join()
    assert answers == [200] * 4, answers
    return time.monotonic() - killed_at


def controller_killed(stage: Stage) -> float:
    running = stage.ledger.submit(LONG)
    stage.ledger.until_running(running)
    killed_at = stage.application.kill("ray::ServeController")
    assert stage.ledger.until_ended(stage.ledger.submit()) == "completed"
    recovery_s = time.monotonic() - killed_at
    assert stage.ledger.until_ended(running) == "completed"
    stage.application.pid_of("ray::ServeController")
    generator_killed_mid_step(stage)  # the new one replaces what dies
    return recovery_s


def everything_killed_and_started_again(stage: Stage) -> float:
    ended = stage.ledger.submit()
    stage.ledger.until_ended(ended)
    running, waiting = stage.ledger.submit(LONG), [stage.ledger.submit(LONG) for _ in range(4)]
    stage.ledger.until_running(running)
    stage.application.kill_everything()
    started_at = time.monotonic()
    stage.application.start()
    stage.ledger.until_running(running)
    recovery_s = time.monotonic() - started_at
    assert [stage.ledger.until_ended(one) for one in waiting] == ["completed"] * 4
    return recovery_s


def queue_keeps_its_order(stage: Stage) -> float:
    """More jobs wait than may run at a time; those that had not begun begin in the order they would have had."""
    jobs = [stage.ledger.submit(LONG, infer_step=30, priority=priority) for priority in PRIORITIES]
    stage.ledger.until_running(jobs[0])
    before = {one: stage.ledger.status(one)["position"] for one in jobs}
    stage.application.kill_everything()
    started_at = time.monotonic()
    stage.application.start()
    stage.ledger.until_running(jobs[0])
    recovery_s = time.monotonic() - started_at
    assert [stage.ledger.until_ended(one) for one in jobs] == ["completed"] * len(jobs)
    waited = sorted((one for one in jobs if before[one] is not None), key=lambda one: before[one])
    began = [stage.ledger.status(one)["started_at"] for one in waited]
    assert len(waited) > 2, before
    assert all(later > earlier - TOGETHER_S for earlier, later in pairwise(began)), f"in order they began at {began}"
    return recovery_s


def told_to_stop_and_started_again(stage: Stage) -> float:
    running, waiting = stage.ledger.submit(LONG), stage.ledger.submit()
    stage.ledger.until_running(running)
    told_at = time.monotonic()
    assert stage.application.stop() == 0
    print(f"    stopped {time.monotonic() - told_at:.1f} s after SIGTERM")
    stage.application.kill_everything()
    started_at = time.monotonic()
    stage.application.start()
    stage.ledger.until_running(running)
    recovery_s = time.monotonic() - started_at
    assert [stage.ledger.until_ended(one) for one in (running, waiting)] == ["completed"] * 2
    return recovery_s


def job_that_kills_its_replica_three_times(stage: Stage) -> float:
    poison = stage.ledger.submit(LONG)
    stage.ledger.until_running(poison)
    for _ in range(3):
        killed_at = stage.application.kill("Generator")
        stage.ledger.until_running_again(poison)
    assert stage.ledger.until_ended(poison) == "failed"
    assert stage.ledger.entries[poison].error_code == "replica_lost"
    assert stage.ledger.until_ended(stage.ledger.submit()) == "completed"
    return time.monotonic() - killed_at


def generator_frozen_past_its_lease(stage: Stage) -> float:
    """It wakes up after its songs were given to another attempt; what it says then is not heard."""
    request_id = stage.ledger.submit(LONG)
    stage.ledger.until_running(request_id)
    stage.application.signal("Generator", signal.SIGSTOP)
    frozen = stage.application.pid_of("Generator")
    stage.ledger.until(request_id, lambda status: step_of(status) == 0)
    thawed_at = time.monotonic()
    os.kill(frozen, signal.SIGCONT)
    assert stage.ledger.until_ended(request_id) == "completed"
    return time.monotonic() - thawed_at


def generator_frozen_for_good(stage: Stage) -> float:
    request_id = stage.ledger.submit(LONG)
    stage.ledger.until_running(request_id)
    frozen_at = stage.application.signal("Generator", signal.SIGSTOP)
    stage.ledger.until_running_again(request_id)
    recovery_s = time.monotonic() - frozen_at
    assert stage.ledger.until_ended(request_id) == "completed"
    return recovery_s


def cancel_to_free_slot(stage: Stage) -> float:
    """From the cancel of a running song to the next one of its size doing steps."""
    running = [stage.ledger.submit(LONG, infer_step=200) for _ in range(8)]  # all places of that size
    waiting = stage.ledger.submit(LONG)
    stage.ledger.until_running(running[0])
    asked_at = time.monotonic()
    assert stage.ledger.cancel(running[0])
    stage.ledger.until_running(waiting)
    recovery_s = time.monotonic() - asked_at
    for request_id in [*running[1:], waiting]:
        stage.ledger.cancel(request_id)
    return recovery_s


def cancelled_at_once(stage: Stage) -> float:
    """Several clients submit songs and cancel them at once: none of them is made unseen."""

    def submit_and_cancel(number: int) -> None:
        request_id = stage.ledger.submit(LONG, audio_duration=240, infer_step=200)
        time.sleep(number % 5 / 50)
        stage.ledger.cancel(request_id)

    in_parallel(submit_and_cancel, range(100), at_once=5)
    cancelled_at = time.monotonic()
    generator = stage.application.pid_of("Generator")
    while (share := _cpu_share(generator)) > IDLE_CPUS:
        assert time.monotonic() < cancelled_at + 15, f"the Generator still uses {share:.1f} CPUs"
    return time.monotonic() - cancelled_at


def _cpu_share(pid: int) -> float:
    """How many CPUs a process uses, over a second."""
    before, started_at = _cpu_ticks(pid), time.monotonic()
    time.sleep(1.0)
    return (_cpu_ticks(pid) - before) / os.sysconf("SC_CLK_TCK") / (time.monotonic() - started_at)


def _cpu_ticks(pid: int) -> int:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return int(user) + int(system)


@contextmanager
def locked(store: Path) -> Iterator[None]:
    """Nobody else can write the store meanwhile."""
    with closing(sqlite3.connect(store, isolation_level=None, timeout=30)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


def wait_for_file(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} does not appear"
        time.sleep(WINDOW_POLL_S)


def wait_for_row(store: Path, condition: str, value: str) -> None:
    """Until a row is so, as another process sees it: committed."""
    deadline = time.monotonic() + 120
    with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as reader:
        while reader.execute(f"SELECT 1 FROM jobs WHERE {condition}", (value,)).fetchone() is None:
            assert time.monotonic() < deadline, f"no row: {condition}"
            time.sleep(WINDOW_POLL_S)


def _count(store: Path) -> int:
    with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as reader:
        return int(reader.execute("SELECT count(*) FROM jobs").fetchone()[0])


FAULTS = [
    Fault("Generator killed mid-step", generator_killed_mid_step, one_machine, times=5, is_fast=True),
    Fault("Generator killed after the file is written", generator_killed_after_the_file, one_machine),
    Fault("JobManager killed after the file is written", job_manager_killed_after_the_file, one_machine),
    Fault("JobManager killed while it publishes", job_manager_killed_while_it_publishes, one_machine, is_fast=True),
    Fault("Generator and JobManager killed after commit", generator_and_job_manager_killed_after_commit, one_machine),
    Fault("text encoder killed", text_encoder_killed, one_machine),
    Fault("ingress killed after commit", ingress_killed_after_commit, one_machine, is_fast=True),
    Fault("JobManager killed", job_manager_killed, one_machine),
    Fault("state folder taken over", state_folder_taken_over, one_machine, times=2, is_fast=True),
    Fault("JobManager killed while clients wait", job_manager_killed_while_clients_wait, one_machine),
    Fault("controller killed", controller_killed, one_machine, times=2),
    Fault("a job that kills its replica three times", job_that_kills_its_replica_three_times, one_machine, times=1),
    Fault("Generator frozen past its lease", generator_frozen_past_its_lease, one_machine, times=2),
    Fault("Generator frozen for good", generator_frozen_for_good, one_machine, times=1),
    Fault("cancel to free slot", cancel_to_free_slot, one_machine, is_fast=True),
    Fault("cancelled as soon as submitted", cancelled_at_once, one_machine, is_fast=True),
    Fault("SIGTERM, then started again", told_to_stop_and_started_again, one_machine, times=2),
    Fault("every process killed: the queue's order", queue_keeps_its_order, one_machine, times=1),
    Fault("every process killed, then started again", everything_killed_and_started_again, one_machine, times=2),
]
