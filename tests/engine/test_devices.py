"""What the process does with its memory, and what an error says of the device."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from acestep_engine import devices
from acestep_engine.devices import Pacer, as_out_of_memory, available_bytes, is_lost, is_out_of_memory
from tests.engine.small import CPU

BLOCKS = """
import concurrent.futures, resource, sys
from acestep_engine.freed_memory import keep_freed_memory

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
from acestep_engine.freed_memory import give_back_freed_memory, keep_freed_memory

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


GPU = torch.device("cuda", 1)


@pytest.mark.parametrize(
    "text",
    [
        "[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: can't allocate memory: you tried",
        "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in https://docs.nvidia.com",
        "Triton Error [CUDA]: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuFFT error: CUFFT_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    ],
)
def test_libraries_that_say_by_their_text_that_memory_ran_out_are_understood(text: str) -> None:
    for error in (RuntimeError(text), torch.AcceleratorError(text)):
        assert is_out_of_memory(error)
        assert isinstance(as_out_of_memory(error), torch.OutOfMemoryError)
        assert not is_lost(error, GPU)  # though it asks nobody: there is no such GPU
    assert not is_out_of_memory(ValueError(text))


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: invalid configuration argument"),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
    ],
)
@pytest.mark.parametrize("works", [True, False])
def test_whether_a_gpu_is_lost_is_found_out_by_asking_it(
    monkeypatch: pytest.MonkeyPatch, error: RuntimeError, works: bool
) -> None:
    monkeypatch.setattr(devices, "answers", lambda device: works)
    assert is_lost(error, GPU) is not works


@pytest.mark.parametrize(("error", "works"), [(torch.AcceleratorError("700"), False), (torch.OutOfMemoryError(), True)])
def test_a_gpu_whose_memory_is_full_is_not_lost(
    monkeypatch: pytest.MonkeyPatch, error: RuntimeError, works: bool
) -> None:
    def refuse(*args: object, **kwargs: object) -> torch.Tensor:
        raise error

    monkeypatch.setattr(torch, "ones", refuse)
    assert devices.answers(CPU) is works


def test_a_gpu_that_computes_answers() -> None:
    assert devices.answers(CPU)


def test_memory_that_the_allocator_keeps_without_using_it_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 300)
    assert available_bytes(GPU) == 500


def test_the_host_waits_for_the_units_of_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for those of the thread's current one, which is the first."""
    log: list[str] = []

    class Event:
        def __init__(self, blocking: bool) -> None:
            self._name = "mark"

        def record(self, stream: SimpleNamespace) -> None:
            self._name = f"mark on {stream.device}"
            log.append(self._name)

        def synchronize(self) -> None:
            log.append(f"waited for {self._name}")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(device=device))
    pacer = Pacer(GPU)
    for _ in range(devices.UNITS_AHEAD + 1):
        pacer.wait()
    assert log == ["mark on cuda:1"] * devices.UNITS_AHEAD + ["waited for mark on cuda:1", "mark on cuda:1"]
