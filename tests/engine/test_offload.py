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
