"""Which device and precision a model runs in."""

import torch

from acestep_engine.params import Precision

CUDA_PRECISION = torch.bfloat16
CPU_PRECISION = torch.float32


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
