"""CPU offload: only the module in use is on the GPU, so that the 3.5 B model fits a card of 8 GB."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

CPU = torch.device("cpu")


class Movable(Protocol):
    def to(self, device: torch.device) -> object: ...


class Residency:
    """Moves a module to `device` when it is needed, and another one away. Does nothing unless `enabled`.

    What was used last stays: a song has many forwards in a row, and moving the model takes longer than one of them.
    """

    def __init__(self, device: torch.device, *, enabled: bool) -> None:
        self.device = device
        self.enabled = enabled and device.type != "cpu"
        self._resident: Movable | None = None

    @contextmanager
    def use(self, module: Movable) -> Iterator[None]:
        """`module` is on the device inside the block, and alone there."""
        if self.enabled and self._resident is not module:
            # Weights that were moved in inference mode would be of another kind, for which compiled blocks would be
            # compiled anew in the middle of a song.
            with torch.inference_mode(False):
                self._move(module)
        yield

    def _move(self, module: Movable) -> None:
        leaving, self._resident = self._resident, None  # also if it does not get away
        if leaving is not None:
            leaving.to(CPU)
            torch.cuda.empty_cache()  # what this one needs next
        try:
            module.to(self.device)
        except Exception:
            module.to(CPU)  # for want of memory a part of it is there
            raise
        self._resident = module
