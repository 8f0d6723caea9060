"""Runs each case against one server, and holds it to what others may notice.

Those who misbehave have a process of their own, of low priority: what they do should not hold up who watches, and only
the server's work should count. On two cores, they would otherwise take what the server needs to answer others.
"""

import multiprocessing
import os
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import requests

from tests.abuse.cases import SONG, Case
from tests.abuse.watch import Health, memory_mib, watching

HEALTH_P99_MS = 250.0
SILENCE_S = 1.0
GROWTH_MIB = 200.0
LOW_PRIORITY = 19  # of nice; Ray's own workers have 15
SETTLE_S = 20.0  # until memory is given back and what was begun has ended
HEAD = (
    f"{'case':38} {'health p50':>10} {'p99':>8} {'silence':>8} {'failed':>6}  {'grown most':>22}  song  left  answers"
)


@dataclass(frozen=True)
class Record:
    """The effects of a case on others."""

    name: str
    health: Health
    grown_mib: dict[str, float]  # by role of the process
    song_is_made: bool
    left: str  # what is not as before; empty
    answers: str

    @property
    def is_good(self) -> bool:
        quick = self.health.percentile_ms(0.99) <= HEALTH_P99_MS and self.health.longest_silence_s <= SILENCE_S
        small = max(self.grown_mib.values()) <= GROWTH_MIB
        return quick and small and self.song_is_made and not self.left and not self.health.failures

    def row(self) -> str:
        health, (role, grown) = self.health, max(self.grown_mib.items(), key=lambda one: one[1])
        return (
            f"{self.name:38} {health.percentile_ms(0.5):7.0f} ms {health.percentile_ms(0.99):5.0f} ms "
            f"{health.longest_silence_s:6.2f} s {health.failures:6d}  {role:>12} {grown:5.0f} MiB  "
            f"{'made' if self.song_is_made else 'NOT':4}  {self.left or '-':4}  {self.answers}"
        )


def run(cases: Iterable[Case], url: str, server_pid: int, state: Path, amount: float = 1.0) -> Iterable[Record]:
    """Each case in turn, with what it did."""
    _make_a_song(url)
    for case in cases:
        before = memory_mib(server_pid)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), os.nice, (LOW_PRIORITY,)) as attacker:
            attacker.submit(int).result()  # it starts before anybody watches
            with watching(url) as health:
                try:
                    answers = attacker.submit(case.run, url, amount).result()
                except (requests.RequestException, OSError, AssertionError) as error:
                    answers = f"stopped: {type(error).__name__} {error}"[:200]
                made = _make_a_song(url)
        left, grown = _settled(url, server_pid, state, before)
        yield Record(case.name, health, grown, made, left, answers)


def _make_a_song(url: str) -> bool:
    try:
        answer = requests.post(f"{url}/generate_music_direct", json=SONG, timeout=120)
    except requests.RequestException:
        return False
    return answer.status_code == 200 and answer.content[:4] == b"RIFF"


def _settled(url: str, server_pid: int, state: Path, before: dict[str, float]) -> tuple[str, dict[str, float]]:
    """Return what is left, and how much each process grew, once both are small or `SETTLE_S` are over."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        left = _left(url, state)
        after = memory_mib(server_pid)
        grown = {role: after[role] - before.get(role, 0.0) for role in after}
        if (not left and max(grown.values()) <= GROWTH_MIB) or time.monotonic() > deadline:
            return left, grown
        time.sleep(1)


def _left(url: str, state: Path) -> str:
    counts = requests.get(f"{url}/queue/status", timeout=60).json()["status_counts"]
    open_jobs = counts["pending"] + counts["processing"]
    half_written = len([*state.rglob(".*.tmp")])
    words = [f"{open_jobs} jobs" if open_jobs else "", f"{half_written} files" if half_written else ""]
    return " ".join(word for word in words if word)
