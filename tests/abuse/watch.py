"""Measures of what others notice while one client misbehaves: answers of /health, and the memory of each process."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import requests

POLL_S = 0.05
HEALTH_TIMEOUT_S = 30.0
PAGE_BYTES = 4096
ROLES = ("ProxyActor", "Ingress", "JobManager", "TextEncoder", "Generator", "ServeController")


@dataclass
class Health:
    """Answers of /health during a case."""

    answers_s: list[float] = field(default_factory=list)
    failures: int = 0
    longest_silence_s: float = 0.0

    def percentile_ms(self, share: float) -> float:
        ordered = sorted(self.answers_s) or [float("inf")]
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@contextmanager
def watching(url: str) -> Iterator[Health]:
    """Ask /health again and again, on a connection of its own each time, until the block ends."""
    health, stopped = Health(), threading.Event()

    def ask() -> None:
        answered_at = time.monotonic()
        while not stopped.is_set():
            asked_at = time.monotonic()
            try:
                ok = requests.get(f"{url}/health", timeout=HEALTH_TIMEOUT_S).status_code == 200
            except requests.RequestException:
                ok = False
            now = time.monotonic()
            if ok:
                health.answers_s.append(now - asked_at)
                health.longest_silence_s = max(health.longest_silence_s, now - answered_at)
                answered_at = now
            else:
                health.failures += 1
            stopped.wait(POLL_S)
        health.longest_silence_s = max(health.longest_silence_s, time.monotonic() - answered_at - POLL_S)

    thread = threading.Thread(target=ask, name="health")
    thread.start()
    try:
        yield health
    finally:
        stopped.set()
        thread.join()


def memory_mib(parent: int) -> dict[str, float]:
    """The private memory of each role's process among the descendants of a process, in MiB."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found: dict[str, float] = {}
    waiting = [parent]
    while waiting:
        process = waiting.pop()
        waiting += children.get(process, [])
        try:
            title = (Path("/proc") / str(process) / "cmdline").read_bytes().decode(errors="replace")
            _, resident, shared, *_ = (Path("/proc") / str(process) / "statm").read_text().split()
        except (OSError, ValueError):
            continue
        role = next((role for role in ROLES if title.startswith("ray::") and role in title), None)
        if role is not None:
            private = (int(resident) - int(shared)) * PAGE_BYTES / 2**20
            found[role] = found.get(role, 0.0) + private
    return found
