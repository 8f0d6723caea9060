"""CUDA graphs on a real GPU: the same songs, beside whatever else the process does there."""

import threading
from dataclasses import replace

import pytest
import torch

from acestep_engine.batch import Batch
from acestep_engine.calibrate import ROW_FRAMES, any_share, recording_pays_up_to
from acestep_engine.graphs import CudaRecorder, GraphedTransformer
from acestep_engine.model.packing import GAP_FRAMES
from tests.engine.small import SMALL, folded, loaded_transformer
from tests.parity import relative_error

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE = torch.device("cuda")


def small_batch() -> Batch:
    return Batch(folded(loaded_transformer(SMALL)).to(DEVICE), DEVICE, torch.float32)


@torch.inference_mode()
def test_replayed_forwards_answer_as_plain_ones_while_another_thread_uses_the_gpu() -> None:
    """What was recorded is forgotten in between, as at the end of a song, and latents change from step to step."""
    plain, recording = small_batch(), small_batch()
    graphed = GraphedTransformer(recording.transformer, CudaRecorder(DEVICE), 10_000)
    recording.graphed = graphed
    done = threading.Event()

    def bring_adapters() -> None:
        while not done.is_set():
            with torch.cuda.stream(torch.cuda.Stream()):  # of 32, in turn
                torch.zeros(2**20, device=DEVICE).sum().item()

    other = threading.Thread(target=bring_adapters)
    other.start()
    try:
        for rows in (1, 2, 5, 1, 2):
            share = any_share(recording, DEVICE)
            (query,) = share.queries
            for _ in range(8):
                moved = replace(query, latents=torch.randn_like(query.latents))
                company = [replace(share, queries=(moved,))] * rows
                for found, expected in zip(recording.forward(company), plain.forward(company), strict=True):
                    assert relative_error(found[0], expected[0]) < 1e-5
            recording.forget_packings()
    finally:
        done.set()
        other.join()
    assert graphed.most_tokens == 10_000  # none failed
    assert torch.randn(1, device=DEVICE).isfinite().all()  # a recording that fails to begin would break this


def test_the_trial_finds_that_small_forwards_are_faster() -> None:
    """More than one size of them: the second is recorded after all of the first was let go of."""
    assert recording_pays_up_to(small_batch(), DEVICE, CudaRecorder(DEVICE), 1000) > ROW_FRAMES + GAP_FRAMES


@torch.inference_mode()
def test_a_recording_that_fails_leaves_the_gpu_as_it_was() -> None:
    record = CudaRecorder(DEVICE)
    with pytest.raises(RuntimeError):
        record(lambda: [torch.zeros(1, device=DEVICE) + torch.zeros(1, device=DEVICE).item()])
    x = torch.randn(100, device=DEVICE)
    assert torch.equal(x.cpu(), x.cpu())
    del x
    torch.cuda.empty_cache()
