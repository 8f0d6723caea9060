"""Which device and precision a model runs in, and how far the host may run ahead of it."""

import ctypes
import gc
from collections import deque
from contextlib import suppress

import torch

from acestep_engine.params import Precision

CUDA_PRECISION = torch.bfloat16
CPU_PRECISION = torch.float32
# Of glibc's malloc.h and arena.c.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8
LARGEST_MMAP_THRESHOLD = 2**25
THREAD_HEAP_BYTES = 2**26
KEPT_BYTES = 2**30
ARENAS = 2  # heaps of their own for threads other than the first; each keeps what was freed in it

# What a CPU's allocator, cuBLAS and cuDNN say.
OUT_OF_MEMORY_WORDS = ("DefaultCPUAllocator: ", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
UNITS_AHEAD = 2  # enough that the GPU never waits for the host


def pick_device(name: str | None = None) -> torch.device:
    """The named device, else the first GPU that this process may see, else the CPU."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def pick_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU and float32 on a CPU."""
    if precision == "auto":
        return CUDA_PRECISION if device.type == "cuda" else CPU_PRECISION
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def describe_device(device: torch.device) -> str:
    """What /health says: "cpu", or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def free_memory() -> None:
    """Give back what no tensor uses."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def as_out_of_memory(error: Exception) -> Exception:
    """The same error, or torch.OutOfMemoryError if it says by its text only that memory ran out."""
    if isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY_WORDS):
        return error if isinstance(error, torch.OutOfMemoryError) else torch.OutOfMemoryError(str(error))
    return error


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Pacer:
    """Keeps the host few units ahead of a GPU, so that who arrives does not wait behind all that could be queued."""

    def __init__(self, device: torch.device) -> None:
        self._asynchronous = device.type == "cuda"
        self._marks: deque[torch.cuda.Event] = deque()

    def wait(self) -> None:
        """Call once before each unit."""
        if not self._asynchronous:
            return
        if len(self._marks) == UNITS_AHEAD:
            self._marks.popleft().synchronize()
        mark = torch.cuda.Event()
        mark.record()
        self._marks.append(mark)


def keep_freed_memory() -> None:
    """Have the C library keep large blocks that were freed, for the next step to use again (glibc only).

    By default it gives each back to the system, and a CPU spends up to a third of a forward on getting them again.
    Threads other than the first have heaps of their own, which it gives back as soon as they are empty but for less
    than the padding.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    mallopt(M_TOP_PAD, THREAD_HEAP_BYTES)
    mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
    mallopt(M_ARENA_MAX, ARENAS)


def give_back_freed_memory() -> None:
    """Have the C library give all that was freed back to the system (glibc only), in every heap.

    What it keeps between two songs grows with their number otherwise, because songs of other lengths do not fit the
    gaps. The next song gets memory anew, which takes about a tenth of a second for a small model: call it now and then.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
