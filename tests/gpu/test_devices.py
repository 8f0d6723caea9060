"""What becomes of a real GPU after an error: in processes of their own, because one of them loses it."""

import subprocess
import sys

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

AFTER_AN_ERROR = """
import sys, torch
from acestep_engine.devices import is_lost, is_out_of_memory

gpu = torch.device("cuda")
try:
    exec(sys.argv[1])
    torch.cuda.synchronize()
except Exception as error:
    print(is_lost(error, gpu), is_out_of_memory(error))
"""


@pytest.mark.parametrize(
    ("code", "lost", "exhausted"),
    [
        ("torch.nn.functional.embedding(torch.tensor([9], device=gpu), torch.ones(2, 2, device=gpu))", True, False),
        ("torch.empty(2**50, device=gpu)", False, True),
        ("torch.ones(2, device=gpu) @ torch.ones(3, device=gpu)", False, False),
    ],
)
def test_only_an_error_that_the_gpu_does_not_recover_from_loses_it(code: str, lost: bool, exhausted: bool) -> None:
    command = [sys.executable, "-c", AFTER_AN_ERROR, code]
    out = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    assert out.split() == [str(lost), str(exhausted)]
