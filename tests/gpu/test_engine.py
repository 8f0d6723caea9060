"""Whole songs on a real GPU: the same with everything that makes them faster or smaller, and without a fallback."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from acestep_engine.checkpoint import NANO_PATH
from acestep_engine.conditioning import Conditioning
from acestep_engine.engine import Engine
from acestep_engine.params import GenerationParams, ModelSpec
from acestep_engine.requests import Inputs, Song, songs_of
from tests.engine.wishes import drain
from tests.parity import relative_error

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

PLAIN = ModelSpec("nano", str(NANO_PATH), precision="float32", torch_compile=False, cuda_graphs=False)
WISHES = [GenerationParams("", "", duration_s, seed=1, steps=8) for duration_s in (2.0, 5.0, 11.0)]


def songs(spec: ModelSpec, device: str = "cuda") -> list[Song]:
    """Made together, twice: what was recorded or compiled for the first is used for the second."""
    engine = Engine.load(spec, device)
    draw = np.random.default_rng(3)
    ids = np.array([1, 5, 9], dtype=np.int64)
    conditioning = Conditioning(draw.standard_normal((4, 64), dtype=np.float32), None, ids, np.ones_like(ids))
    for _ in range(2):
        for index, params in enumerate(WISHES):
            engine.add(str(index), params, Inputs(conditioning))
        made = songs_of(drain(engine))
    return [made[str(index)] for index in range(len(WISHES))]


@pytest.mark.parametrize(
    "spec",
    [
        replace(PLAIN, torch_compile=True),
        replace(PLAIN, cuda_graphs=True),
        replace(PLAIN, torch_compile=True, cuda_graphs=True),
        replace(PLAIN, torch_compile=None, cuda_graphs=None),
        replace(PLAIN, cpu_offload=True),
        replace(PLAIN, cpu_offload=True, torch_compile=True),
    ],
    ids=["compiled", "graphs", "compiled graphs", "whatever pays", "offload", "compiled offload"],
)
def test_songs_are_the_same_and_nothing_had_to_be_given_up(spec: ModelSpec, caplog: pytest.LogCaptureFixture) -> None:
    for found, expected in zip(songs(spec), songs(PLAIN), strict=True):
        assert relative_error(torch.tensor(found.latents), torch.tensor(expected.latents)) < 2e-3
    assert not caplog.text


def test_songs_are_made_in_the_precision_of_a_gpu_and_nothing_had_to_be_given_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for song in songs(replace(PLAIN, precision="auto", torch_compile=None, cuda_graphs=None)):
        assert np.isfinite(song.audio).all()
        assert song.audio.std() > 0
    assert not caplog.text


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second CUDA device")
def test_songs_are_made_on_another_gpu_than_the_first(caplog: pytest.LogCaptureFixture) -> None:
    spec = replace(PLAIN, cuda_graphs=True)
    for found, expected in zip(songs(spec, "cuda:1"), songs(spec), strict=True):
        assert relative_error(torch.tensor(found.latents), torch.tensor(expected.latents)) < 2e-3
    assert not caplog.text
