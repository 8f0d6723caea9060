"""CUDA graphs on a real GPU: the same songs, beside whatever else the process does there."""

import threading

import pytest
import torch

from acestep_engine.batch import Batch
from acestep_engine.calibrate import any_share, recording_pays_up_to
from acestep_engine.graphs import CudaRecorder, GraphedTransformer
from tests.engine.small import SMALL, folded, loaded_transformer
from tests.parity import relative_error

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def small_batch() -> Batch:
    device = torch.device("cuda")
    return Batch(folded(loaded_transformer(SMALL)).to(device), device, torch.float32)


@torch.inference_mode()
def test_replayed_forwards_answer_as_plain_ones_while_another_thread_allocates() -> None:
    plain, recording = small_batch(), small_batch()
    recording.graphed = GraphedTransformer(recording.transformer, CudaRecorder(), 10_000)
    done = threading.Event()

    def allocate() -> None:
        while not done.is_set():
            torch.zeros(2**20, device="cuda").sum().item()

    other = threading.Thread(target=allocate)
    other.start()
    try:
        for rows in (1, 2, 5, 1):
            company = [any_share(recording, torch.device("cuda"))] * rows
            for _ in range(6):
                for found, expected in zip(recording.forward(company), plain.forward(company), strict=True):
                    assert relative_error(found[0], expected[0]) < 1e-5
    finally:
        done.set()
        other.join()
    assert recording.graphed.most_tokens == 10_000  # none failed


def test_the_trial_finds_that_small_forwards_are_faster() -> None:
    assert recording_pays_up_to(small_batch(), torch.device("cuda"), CudaRecorder(), 1000) > 0
