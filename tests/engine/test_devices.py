"""What the process does with its memory."""

import subprocess
import sys

import pytest

BLOCKS = """
import concurrent.futures, resource, sys
from acestep_engine.devices import keep_freed_memory

def pages_got_anew() -> int:
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        for _ in range(ROUNDS):
            [bytearray(int(sys.argv[2]) * 2**20) for _ in range(192 // int(sys.argv[2]))]
    return (resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before) // ROUNDS

ROUNDS = 5
keep_freed_memory()
if sys.argv[1] == "first":
    print(pages_got_anew())
else:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        print(pool.submit(pages_got_anew).result())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it is about glibc")
@pytest.mark.parametrize("thread", ["first", "other"])
@pytest.mark.parametrize("mebibytes", [1, 8, 24])
def test_memory_that_was_freed_is_used_again_in_every_thread(thread: str, mebibytes: int) -> None:
    command = [sys.executable, "-c", BLOCKS, thread, str(mebibytes)]
    pages = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert pages < 192 * 2**20 // 4096 // 10


KEPT = """
import concurrent.futures, threading
from pathlib import Path
from acestep_engine.devices import give_back_freed_memory, keep_freed_memory

def mebibytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 2**20

def work() -> None:
    blocks = [bytearray(2**20) for _ in range(60)]
    del blocks[::2]  # gaps that larger blocks do not fit
    barrier.wait()

keep_freed_memory()
barrier = threading.Barrier(8)
before = mebibytes()
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    list(pool.map(lambda _: work(), range(8)))
    kept = mebibytes() - before
    give_back_freed_memory()
    print(kept, mebibytes() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it is about glibc")
def test_what_was_freed_in_every_thread_is_given_back() -> None:
    out = subprocess.run([sys.executable, "-c", KEPT], check=True, capture_output=True, text=True).stdout
    kept, left = map(int, out.split())
    assert kept > 100
    assert left < kept / 2
