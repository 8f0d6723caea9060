"""Units side by side: the threads they run in, and songs that are the same as alone."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from acestep_engine.lanes import Lanes
from acestep_engine.live_request import Unit
from acestep_engine.model.packing import Packing
from acestep_engine.requests import Event, Finished, songs_of
from tests.engine.small import small_engine
from tests.engine.wishes import (
    KINDS,
    PARAMS,
    Wish,
    alone,
    assert_as_alone,
    assert_same,
    before_forwards,
    drain,
    failures,
    progress,
    run,
)

pytestmark = pytest.mark.usefixtures("one_thread")

TIMEOUT_S = 60.0
SONGS = {str(seed): Wish(replace(PARAMS, seed=seed), prompt=seed) for seed in range(4)}


@pytest.fixture(autouse=True)
def _threads_that_are_new_have_one_core_again() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


# Lanes


def test_one_lane_is_the_callers_own_thread() -> None:
    lanes: Lanes[int] = Lanes()
    lanes.start([threading.get_ident])
    assert lanes.running == 1
    assert lanes.finished() == [threading.get_ident()]
    assert lanes.running == 0
    assert lanes.call(threading.get_ident) == threading.get_ident()


def test_works_that_start_together_run_side_by_side() -> None:
    lanes, meeting = Lanes[int](2, cores=2), threading.Barrier(2, timeout=TIMEOUT_S)
    lanes.start([meeting.wait, meeting.wait])
    assert lanes.running == 2
    assert {*lanes.finished(), *lanes.finished()} == {0, 1}


def test_the_first_that_is_done_is_told_while_the_other_runs() -> None:
    lanes, go = Lanes[str](2, cores=2), threading.Event()

    def slow() -> str:
        assert go.wait(TIMEOUT_S)
        return "slow"

    lanes.start([slow, lambda: "fast"])
    assert lanes.finished() == ["fast"]
    assert lanes.running == 1
    lanes.start([lambda: "another"])
    assert lanes.finished() == ["another"]
    go.set()
    assert lanes.finished() == ["slow"]


def test_those_that_start_together_share_the_cores() -> None:
    lanes: Lanes[int] = Lanes(2, cores=6)
    lanes.start([torch.get_num_threads])
    assert lanes.finished() == [6]
    meeting = threading.Barrier(2, timeout=TIMEOUT_S)

    def share() -> int:
        meeting.wait()
        return torch.get_num_threads()

    lanes.start([share, share])
    assert [*lanes.finished(), *lanes.finished()] == [3, 3]
    assert lanes.call(torch.get_num_threads) in (3, 6)
    lanes.start([torch.get_num_threads])
    assert lanes.finished() == [6]


def test_threads_end_that_have_nothing_to_do() -> None:
    lanes, meeting = Lanes[threading.Thread](2, cores=2), threading.Barrier(2, timeout=TIMEOUT_S)

    def meet() -> threading.Thread:
        meeting.wait()
        return threading.current_thread()

    lanes.start([meet, meet])
    pair = [*lanes.finished(), *lanes.finished()]
    assert [thread.is_alive() for thread in pair] == [True, True]
    lanes.start([threading.current_thread])
    assert lanes.finished()[0].is_alive()
    assert [thread.is_alive() for thread in pair] == [False, False]


def test_what_a_work_raises_is_raised_when_it_is_told() -> None:
    lanes: Lanes[float] = Lanes(2, cores=2)
    lanes.start([lambda: 1 / 0])
    with pytest.raises(ZeroDivisionError):
        lanes.finished()
    assert lanes.running == 0


# An engine with two lanes


def two_lanes() -> Lanes[Unit]:
    return Lanes(2, cores=2)


@pytest.mark.parametrize("max_tokens", [1, 40, 1000])
def test_songs_side_by_side_are_the_songs_alone(max_tokens: int) -> None:
    assert_as_alone(songs_of(run(small_engine(max_tokens, lanes=two_lanes()), KINDS)), KINDS)


def test_several_songs_are_made_side_by_side() -> None:
    """Each forward waits for another one: half of the songs in each."""
    meeting, sizes = threading.Barrier(2, timeout=TIMEOUT_S), []

    def meet(packing: Packing) -> None:
        sizes.append(len(packing.segments))
        meeting.wait()

    with before_forwards(meet):
        events = run(small_engine(lanes=two_lanes()), SONGS)
    assert failures(events) == {}
    assert sizes == [2] * 2 * PARAMS.steps
    assert_as_alone(songs_of(events), SONGS)


def test_a_song_that_has_the_engine_to_itself_has_all_cores() -> None:
    cores: list[int] = []
    with before_forwards(lambda packing: cores.append(torch.get_num_threads())):
        run(small_engine(lanes=two_lanes()), {"one": KINDS["usual"]})
    assert set(cores) == {2}


class NothingLarge(TorchDispatchMode):
    """Refuses whatever this thread would compute with more than a few numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        assert not (isinstance(result, torch.Tensor) and result.numel() > 100), f"{func} in the thread that steps"
        return result


def test_the_thread_that_steps_computes_nothing_large() -> None:
    """OpenMP would keep threads for it as well, and have all of them wait more slowly."""
    engine = small_engine(lanes=two_lanes())
    for name, wish in KINDS.items():
        wish.add_to(engine, name)
    with NothingLarge():
        events = drain(engine)
    assert_as_alone(songs_of(events), KINDS)


class Held:
    """The first forward of a song of this length waits until it is let go."""

    def __init__(self, wish: Wish) -> None:
        self.frames = alone(wish).latents.shape[-1]
        self.begun, self.let_go = threading.Event(), threading.Event()

    def __call__(self, packing: Packing) -> None:
        if not self.begun.is_set() and any(frames == self.frames for _, frames in packing.row_frames()):
            self.begun.set()
            assert self.let_go.wait(TIMEOUT_S)


def test_a_song_that_is_aborted_while_it_is_worked_on_is_not_heard_of_again() -> None:
    """Neither is what goes wrong with it; another one may have its id at once."""
    left, other, next_one = Wish(replace(PARAMS, duration_s=1.0)), KINDS["usual"], KINDS["heun"]
    held, engine, events = Held(left), small_engine(lanes=two_lanes()), list[Event]()
    left.add_to(engine, "left")
    other.add_to(engine, "other")
    with before_forwards(held):
        while "other" not in songs_of(events):
            events += engine.step()
        assert held.begun.is_set()
        engine.abort("left")
        assert not engine.busy
        next_one.add_to(engine, "left")
        aborted_after = len(events)
        held.let_go.set()
        events += drain(engine)
    assert {event.request_id for event in events[:aborted_after] if isinstance(event, Finished)} == {"other"}
    assert_as_alone(songs_of([event for event in events if event.request_id == "other"]), {"other": other})
    told = events[aborted_after:]
    assert_same(songs_of(told)["left"], alone(next_one))
    steps_told = [one.step for one in progress(told, "left") if one.stage == "diffusion"]
    assert steps_told == list(range(len(steps_told)))


def test_a_unit_that_fails_beside_another_fails_its_own_songs_only() -> None:
    culprit = Wish(replace(PARAMS, duration_s=2.0))
    frames = alone(culprit).latents.shape[-1]

    def refuse(packing: Packing) -> None:
        if any(of_row == frames for _, of_row in packing.row_frames()):
            raise RuntimeError("a kernel that fails")

    with before_forwards(refuse):
        events = run(small_engine(lanes=two_lanes()), SONGS | {"culprit": culprit})
    assert failures(events).keys() == {"culprit"}
    assert_as_alone(songs_of(events), SONGS)


def test_what_nobody_foresaw_is_raised_and_the_engine_works_on() -> None:
    engine, broken = small_engine(lanes=two_lanes()), [True]

    def fail(packing: Packing) -> None:
        if broken:
            broken.clear()
            raise TypeError("a mistake of ours")

    for name, wish in SONGS.items():
        wish.add_to(engine, name)
    with before_forwards(fail), pytest.raises(TypeError, match="a mistake of ours"):
        drain(engine)
    for name in SONGS:
        engine.abort(name)
    assert_as_alone(songs_of(run(engine, SONGS)), SONGS)
