"""Which device and precision a model runs in, and how far the host may run ahead of it."""

import gc
from collections import deque

import torch

from acestep_engine.params import Precision

CUDA_PRECISION = torch.bfloat16
CPU_PRECISION = torch.float32

# What a CPU's allocator, CUDA, Triton, cuBLAS, cuFFT and cuDNN (until 8, from 9 on) say. CUDA itself takes memory for
# kernels that are launched for the first time and for graphs, beside torch's allocator.
OUT_OF_MEMORY_WORDS = (
    "DefaultCPUAllocator: ",
    "CUDA error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUFFT_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
)
UNITS_AHEAD = 2  # enough that the GPU never waits for the host


def pick_device(name: str | None = None) -> torch.device:
    """The named device, else the first GPU that this process may see, else the CPU."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def pick_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU and float32 on a CPU."""
    if precision == "auto":
        return CUDA_PRECISION if device.type == "cuda" else CPU_PRECISION
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def why_no_gpu() -> str | None:
    """Return why torch can use no GPU here: a driver that is too old, say. None if it can use one."""
    if torch.cuda.is_available():
        return None
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error)
    return "torch does not say why"


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
    if is_out_of_memory(error) and not isinstance(error, torch.OutOfMemoryError):
        return torch.OutOfMemoryError(str(error))
    return error


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says, by its class or by its text, that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY_WORDS)


def is_lost(error: BaseException, device: torch.device) -> bool:
    """Return whether the device answers nothing any more after this error, so that its process is of no more use.

    The error does not say so: torch raises the same class for a kernel that could not be launched as asked, after which
    all goes on, and Triton's launcher and cuBLAS raise a plain RuntimeError for a GPU that is lost. So a GPU is asked.
    """
    if device.type != "cuda":
        return isinstance(error, torch.AcceleratorError)
    return not is_out_of_memory(error) and not answers(device)


def answers(device: torch.device) -> bool:
    """Return whether a GPU still computes. An error that it does not recover from fails every later call."""
    try:
        torch.ones(1, device=device).add_(1).item()
    except RuntimeError as error:
        return is_out_of_memory(error)
    return True


def available_bytes(device: torch.device) -> int:
    """Return the GPU's memory that is free, and what torch's allocator keeps of it without using it."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Pacer:
    """Keeps the host few units ahead of a GPU, so that who arrives does not wait behind all that could be queued."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: deque[torch.cuda.Event] = deque()

    def wait(self) -> None:
        """Call once before each unit."""
        if self._device.type != "cuda":
            return
        if len(self._marks) == UNITS_AHEAD:
            self._marks.popleft().synchronize()
        mark = torch.cuda.Event(blocking=True)  # who waits for it sleeps, and leaves its core to others
        mark.record(torch.cuda.current_stream(self._device))  # else of the thread's device, at first GPU 0
        self._marks.append(mark)
