"""What an engine finds out about its device before it says that it is ready."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from acestep_engine import calibrate
from acestep_engine.calibrate import LEAST_ROWS, ROW_FRAMES, measure_forwards
from acestep_engine.engine import Engine
from acestep_engine.model.packing import Packing
from acestep_engine.params import ModelSpec
from tests.engine.small import CPU, SMALL, Ask, Batch, folded, loaded_transformer, small_autoencoder, small_transformer
from tests.engine.wishes import before_forwards

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "MAX_ROWS", 4 * LEAST_ROWS)


@pytest.fixture
def untraced() -> Iterator[None]:
    """Nothing is kept of what was traced."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_an_engine_measures_its_device_if_nobody_says_what_it_can_do() -> None:
    engine = Engine(ModelSpec("small", "nowhere"), small_transformer(), small_autoencoder(), CPU)
    assert engine.calibration.max_tokens in [rows * LEAST_ROWS * ROW_FRAMES for rows in (1, 2, 4)]
    assert engine.calibration.tokens_per_decoded_frame > 0
    assert engine.scheduler.max_tokens == engine.calibration.max_tokens
    assert not engine.busy


def forwards_and_tokens(taken_s: float, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], int]:
    """The tokens of each forward that is run where each takes so long, and what may share one."""
    run, clock = list[int](), [0.0]
    monkeypatch.setattr(calibrate.time, "perf_counter", lambda: clock[0])

    def note(packing: Packing) -> None:
        run.append(packing.tokens)
        clock[0] += taken_s

    with before_forwards(note):
        most, _ = measure_forwards(Batch(small_transformer(), CPU, torch.float32), CPU)
    return run, most


def test_a_slow_cpu_is_measured_by_one_forward_of_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    run, most = forwards_and_tokens(3.0, monkeypatch)
    assert len(run) == 1
    assert run[0] < 2 * ROW_FRAMES
    assert most == LEAST_ROWS * ROW_FRAMES


def test_a_fast_cpu_is_measured_by_larger_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    run, most = forwards_and_tokens(0.01, monkeypatch)
    assert len(run) > 3
    assert most == 4 * LEAST_ROWS * ROW_FRAMES


def most_tokens(monkeypatch: pytest.MonkeyPatch, taken_s: list[float]) -> int:
    """What may share a forward, where forwards of more and more rows take so long. All of these are run."""
    left = iter(taken_s)
    monkeypatch.setattr(calibrate, "_seconds", lambda work, device: next(left))
    most, _ = measure_forwards(Batch(small_transformer(), CPU, torch.float32), CPU)
    assert not list(left)
    return most


def test_nobody_is_made_to_wait_for_a_forward_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    assert most_tokens(monkeypatch, [0.15, 0.21]) == LEAST_ROWS * ROW_FRAMES


def test_a_short_song_fits_however_long_it_takes_and_nothing_larger_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    assert most_tokens(monkeypatch, [30.0]) == LEAST_ROWS * ROW_FRAMES


def test_a_cpu_that_others_use_meanwhile_lets_as_many_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second forward takes four times what it should; songs would run one by one for good otherwise."""
    assert most_tokens(monkeypatch, [0.01, 0.08, 0.09]) == 4 * LEAST_ROWS * ROW_FRAMES


def test_a_forward_that_does_not_fit_any_more_ends_the_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may have taken what was free a moment ago."""

    def look(packing: Packing) -> None:
        if len(packing.segments) > LEAST_ROWS:
            raise torch.OutOfMemoryError("others hold it")

    with before_forwards(look):
        most, _ = measure_forwards(Batch(small_transformer(), CPU, torch.float32), CPU)
    assert most == LEAST_ROWS * ROW_FRAMES


@pytest.mark.parametrize(("available", "fits"), [(3_400, True), (3_300, False)])
def test_memory_that_is_kept_for_use_counts_as_available(
    monkeypatch: pytest.MonkeyPatch, available: int, fits: bool
) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 6_000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5_000)
    monkeypatch.setattr(calibrate, "available_bytes", lambda device: available)
    assert calibrate._fits(200, 100, gpu) is fits  # which takes 2,000


@pytest.mark.usefixtures("untraced")
def test_no_forward_compiles_anything_once_the_engine_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are traced as for a GPU, but run as they are: what is traced when does not depend on it."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    model = folded(loaded_transformer(SMALL))
    batch = Batch(model, CPU, torch.float32)
    model.compile_blocks()
    measure_forwards(batch, CPU)
    compiled = counters["stats"]["unique_graphs"]
    assert compiled > 0
    with torch.inference_mode():
        for asks in (
            [Ask(20)],
            [Ask(20, query_scales=(1.0, 1.0))],
            [Ask(31, query_scales=(1.0, 0.01, 1.0))],
            [Ask(20), Ask(30, timestep=100.0)],
            [
                Ask(20, query_scales=(1.0, 0.01)),
                Ask(30, timestep=100.0),
                Ask(300, timestep=7.0, query_scales=(1.0, 0.01)),
            ],
        ):
            batch.forward([ask.share() for ask in asks])
    assert counters["stats"]["unique_graphs"] == compiled
