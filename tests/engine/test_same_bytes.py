"""On a CPU in float32 a song is the same to the byte, alone or among others, on one thread or on several.

The file of a song of under a second or so differs in the last bit where the number of threads does.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from acestep_engine.audio import SourceAudio
from acestep_engine.calibrate import Calibration
from acestep_engine.checkpoint import NANO_PATH
from acestep_engine.conditioning import Conditioning
from acestep_engine.encode import encode_audio
from acestep_engine.engine import Engine
from acestep_engine.lanes import Lanes
from acestep_engine.live_request import Unit
from acestep_engine.model.linear import LEAST_ROWS, project
from acestep_engine.params import GenerationParams, ModelSpec
from acestep_engine.requests import Event, Inputs, Song, songs_of
from tests.engine.small import small_engine
from tests.engine.wishes import KINDS, alone, drain, run, steps

PARAMS = GenerationParams("", "", 1.5, seed=1, steps=3, guidance_interval=1.0)
SHORT = "short"
SONGS = {
    "usual": PARAMS,
    SHORT: replace(PARAMS, duration_s=0.6, seed=2, cfg_type="cfg_star"),
    "long": replace(PARAMS, duration_s=25.0, seed=3, steps=2, scheduler="heun", cfg_type="cfg_star"),
    "doubly guided": replace(PARAMS, duration_s=3.0, seed=4, guidance_scale_text=5.0, guidance_scale_lyric=1.5),
    "from audio": replace(PARAMS, task="audio2audio", seed=5, scheduler="pingpong"),
}


@cache
def nano() -> Engine:
    return nano_engine_of(Engine.load(ModelSpec("nano", str(NANO_PATH)), "cpu", Calibration(2000, 20.0)), None)


def nano_engine_of(loaded: Engine, lanes: Lanes[Unit] | None) -> Engine:
    calibration, device = loaded.calibration, loaded.device
    return Engine(loaded.spec, loaded.transformer, loaded.autoencoder, device, calibration, lanes=lanes)


def inputs(name: str) -> Inputs:
    draw = np.random.default_rng(len(name))
    text = draw.standard_normal((4 + len(name), 64), dtype=np.float32)
    conditioning = Conditioning(text, None, draw.integers(1, 300, 30), np.ones(30, np.int64))
    source = SourceAudio(0.1 * draw.standard_normal((2, 60_000), dtype=np.float32), 48_000)
    return Inputs(conditioning, None, source if SONGS[name].task == "audio2audio" else None)


def add(engine: Engine, name: str) -> None:
    engine.add(name, SONGS[name], inputs(name))


@cache
def nano_alone(name: str) -> Song:
    engine = nano_engine_of(nano(), None)
    add(engine, name)
    return songs_of(drain(engine))[name]


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for name in SONGS:
        nano_alone(name)
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def assert_same_bytes(events: list[Event]) -> None:
    found = songs_of(events)
    assert found.keys() <= SONGS.keys()
    for name, song in found.items():
        expected = nano_alone(name)
        assert song.latents.tobytes() == expected.latents.tobytes(), name
        if name == SHORT:  # oneDNN convolves so few columns in an order that depends on the number of threads
            np.testing.assert_allclose(song.audio, expected.audio, rtol=0, atol=1e-5)
        else:
            assert encode_audio(song.audio, "wav", {}) == encode_audio(expected.audio, "wav", {}), name


@pytest.mark.usefixtures("threads")
def test_songs_alone_are_the_same_to_the_byte() -> None:
    for name in SONGS:
        engine = nano_engine_of(nano(), None)
        add(engine, name)
        assert_same_bytes(drain(engine))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("lanes", [1, 2])
def test_songs_among_others_are_the_same_to_the_byte(lanes: int) -> None:
    engine = nano_engine_of(nano(), Lanes(lanes, cores=2))
    for name in SONGS:
        add(engine, name)
    assert_same_bytes(drain(engine))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("lanes", [1, 2])
def test_songs_that_join_midway_are_the_same_to_the_byte(lanes: int) -> None:
    engine = nano_engine_of(nano(), Lanes(lanes, cores=2))
    events: list[Event] = []
    for name in SONGS:
        add(engine, name)
        events += steps(engine, 1)
    assert_same_bytes(events + drain(engine))


@pytest.mark.usefixtures("one_thread")
def test_every_kind_of_request_has_the_same_latents_to_the_byte() -> None:
    found = songs_of(run(small_engine(), KINDS))
    assert [name for name in KINDS if found[name].latents.tobytes() != alone(KINDS[name]).latents.tobytes()] == []


@pytest.mark.parametrize("threads_used", [1, 2])
@pytest.mark.parametrize(("inputs_", "outputs"), [(256, 768), (576, 256), (128, 256), (16, 32), (2560, 640)])
def test_a_row_of_a_product_does_not_depend_on_the_other_rows(threads_used: int, inputs_: int, outputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(size, inputs_, generator=generator) for size in (400, outputs))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = project(x, weight)
    torch.set_num_threads(threads_used)
    try:
        for rows in (2, 15, 53, LEAST_ROWS - 1, LEAST_ROWS, LEAST_ROWS + 1, 150, 399):
            assert torch.equal(project(x[:rows], weight), expected[:rows])
            assert torch.equal(project(x[-rows:], weight), expected[-rows:])
    finally:
        torch.set_num_threads(before)
