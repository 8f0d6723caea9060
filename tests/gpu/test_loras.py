"""Adapters on a real GPU: brought there beside the work of others."""

from pathlib import Path

import pytest
import torch

from acestep_engine.adapters import AdapterLoader, place_adapter
from tests.engine.loras import Lora, read, registered, save_peft_folder
from tests.engine.small import CPU, SMALL

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_adapters_loaded_beside_running_kernels_are_whole_and_change_nothing_of_others(tmp_path: Path) -> None:
    device = torch.device("cuda")
    folders = [save_peft_folder(Lora(seed=seed, rank=16), tmp_path / str(seed)) for seed in range(3)]
    loader = AdapterLoader(SMALL, device, torch.bfloat16)
    x = torch.randn(2048, 2048, device=device)
    expected = (x @ x).sum().item()
    for _ in range(10):
        running = [(x @ x).sum() for _ in range(20)]  # queued, not done
        for folder in folders:
            placed = loader.load(registered(folder))
            same = place_adapter(read(folder), SMALL, CPU, torch.bfloat16)
            for name, updates in same.updates.items():
                for found, update in zip(placed.updates[name], updates, strict=True):
                    assert torch.equal(found.down.cpu(), update.down)
                    assert torch.equal(found.up.cpu(), update.up)
        assert all(one.item() == expected for one in running)
