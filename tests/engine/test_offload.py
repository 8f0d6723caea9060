import pytest
import torch
from torch import nn

from acestep_engine.offload import Residency

META = torch.device("meta")  # stands for a GPU: what matters is where the weights are


def device_of(module: nn.Module) -> str:
    return next(module.parameters()).device.type


class Counted(nn.Linear):
    moves = 0

    def to(self, device: torch.device) -> "Counted":  # type: ignore[override]
        self.moves += 1
        return self


def test_a_module_is_on_the_device_while_it_is_used() -> None:
    module = nn.Linear(1, 1)
    with Residency(META, enabled=True).use(module):
        assert device_of(module) == "meta"


def test_what_is_used_again_and_again_is_moved_once_and_leaves_for_another() -> None:
    transformer, autoencoder = Counted(1, 1), Counted(1, 1)
    residency = Residency(META, enabled=True)
    for _ in range(60):
        with residency.use(transformer):
            assert transformer.moves == 1
    with residency.use(autoencoder):
        assert (transformer.moves, autoencoder.moves) == (2, 1)


def test_a_cpu_moves_nothing() -> None:
    module = Counted(1, 1)
    with Residency(torch.device("cpu"), enabled=True).use(module):
        assert module.moves == 0


class HalfMoved(Counted):
    """Runs out of memory half on its way to the device, the first time."""

    def to(self, device: torch.device) -> "HalfMoved":  # type: ignore[override]
        self.moves += 1
        self.weight = nn.Parameter(torch.empty_like(self.weight, device=device))
        if device == META and self.moves == 1:
            raise torch.OutOfMemoryError("no room for the bias")
        return self


def test_a_module_that_found_no_memory_is_back_on_the_cpu_and_moved_again() -> None:
    module, residency = HalfMoved(1, 1), Residency(META, enabled=True)
    module.bias = None
    with pytest.raises(torch.OutOfMemoryError), residency.use(module):
        pass
    assert (module.moves, device_of(module)) == (2, "cpu")
    with residency.use(module):
        assert (module.moves, device_of(module)) == (3, "meta")


class Copied(nn.Linear):
    """Gets weights anew when it is moved, as between a CPU and a GPU. Another precision stands for the GPU."""

    def to(self, device: torch.device) -> "Copied":  # type: ignore[override]
        super().to(torch.float32 if device.type == "cpu" else torch.float64)
        return self


def test_weights_stay_what_compiled_blocks_were_compiled_for() -> None:
    """Units run in inference mode; a tensor made in it is of another kind, and would have blocks compiled anew."""
    transformer, autoencoder = Copied(1, 1), Copied(1, 1)
    residency = Residency(META, enabled=True)
    with torch.inference_mode():
        for module in (transformer, autoencoder):
            with residency.use(module):
                assert torch.is_inference_mode_enabled()
                assert module.weight.dtype == torch.float64
                assert not module.weight.is_inference()
    assert not transformer.weight.is_inference()


class Stuck(Counted):
    """Does not find memory on the CPU, the first time."""

    def to(self, device: torch.device) -> "Stuck":  # type: ignore[override]
        super().to(device)
        if device.type == "cpu" and self.moves == 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return self


def test_a_module_that_could_not_leave_is_moved_again_when_it_is_used() -> None:
    """A part of it may have left."""
    stuck, other, residency = Stuck(1, 1), Counted(1, 1), Residency(META, enabled=True)
    with residency.use(stuck):
        pass
    with pytest.raises(RuntimeError), residency.use(other):
        pass
    with residency.use(stuck):
        assert stuck.moves == 3
