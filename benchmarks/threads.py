"""Work in threads whose OpenMP threads end with them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch


def apart(cores: int, work: Callable[[], None]) -> None:
    """Do it in a thread of its own with so many cores.

    What OpenMP keeps for a thread would make all others wait more slowly: see `acestep_engine.lanes`.
    """
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(cores,)) as own:
        own.submit(work).result()
