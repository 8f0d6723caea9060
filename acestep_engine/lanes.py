"""Units of work side by side, each in a thread of its own with its share of a CPU's cores.

The threads of one parallel loop wait for whichever of them is interrupted, and every operation of a model is such a
loop. Songs of their own do not wait for each other: on two cores that other processes use as well, two lanes of one
thread do more than one of two. A song that has the engine to itself has all cores.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Generic, Self, TypeVar

import torch

CPU_LANES = 2

T = TypeVar("T")
R = TypeVar("R")


class Lanes(Generic[R]):
    """Runs work that answers an R, up to `most` at a time; with one lane, in the caller's own thread.

    Use it from one thread, which should not compute anything large itself where there are several lanes: OpenMP makes
    all threads of a process wait more slowly once it has more of them than there are cores.
    """

    def __init__(self, most: int = 1, cores: int = 1) -> None:
        self.most = most
        self._cores = cores
        self._pool: ThreadPoolExecutor | None = None
        self._staffed = 0  # lanes that the pool has threads for
        self._running: set[Future[R]] = set()
        self._done: list[R] = []

    @classmethod
    def for_device(cls, device: torch.device, cores: int) -> Self:
        """What a service runs on this device: a GPU does one thing at a time."""
        return cls(CPU_LANES if device.type == "cpu" and cores > 1 else 1, cores)

    @property
    def running(self) -> int:
        """Works that were started, and that `finished` has not answered."""
        return len(self._running) + len(self._done)

    def start(self, works: Sequence[Callable[[], R]]) -> None:
        """Start works, as many as there are lanes without one. Those that start together share the cores evenly."""
        if self.most == 1:
            self._done += [work() for work in works]
        elif works:
            self._running |= {self._threads(len(works)).submit(work) for work in works}

    def finished(self) -> list[R]:
        """Wait for some of what runs, and tell what came of it. Raises what a work raised."""
        done, self._done = self._done, []
        if self._running:
            ended, self._running = wait(self._running, return_when=FIRST_COMPLETED)
            done += [future.result() for future in ended]
        return done

    def call(self, work: Callable[[], T]) -> T:
        """Do something else in a lane, now, and wait for it."""
        return work() if self.most == 1 else self._threads().submit(work).result()

    def _threads(self, wanted: int | None = None) -> ThreadPoolExecutor:
        """One for each of so many lanes; those there are, if anything runs or it does not matter how many.

        Threads that are not needed end, because what OpenMP keeps for them counts.
        """
        lanes = wanted or self._staffed or 1
        if self._pool is None or (not self._running and self._staffed != lanes):
            if self._pool is not None:
                self._pool.shutdown()
            share = max(1, self._cores // lanes)
            self._pool = ThreadPoolExecutor(lanes, "lane", initializer=torch.set_num_threads, initargs=(share,))
            self._staffed = lanes
        return self._pool
