"""CPU offload: only the module in use is on the GPU, so that the 3.5 B model fits a card of 8 GB."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

CPU = torch.device("cpu")


class Movable(Protocol):
    def to(self, device: torch.device) -> object: ...


class Residency:
    """Moves modules to `device` while they are used, and back. Does nothing unless `enabled`."""

    def __init__(self, device: torch.device, *, enabled: bool) -> None:
        self.device = device
        self.enabled = enabled and device.type != "cpu"

    @contextmanager
    def use(self, module: Movable) -> Iterator[None]:
        """`module` is on the device inside the block, on the CPU after it."""
        if not self.enabled:
            yield
            return
        module.to(self.device)
        try:
            yield
        finally:
            module.to(CPU)
            torch.cuda.empty_cache()  # what the other module needs next
