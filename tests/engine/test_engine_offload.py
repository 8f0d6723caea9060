"""An engine whose models take turns on the device. Here the device is the CPU, and only who may go when differs."""

from dataclasses import replace

import pytest

from acestep_engine.engine import Engine
from acestep_engine.requests import Event, Finished, Moved, songs_of
from tests.engine.small import small_engine
from tests.engine.wishes import KINDS, PARAMS, Wish, assert_as_alone, failures, run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def engine() -> Engine:
    engine = small_engine()
    engine._residency.enabled = True
    return engine


def test_all_kinds_are_the_songs_they_are_alone(engine: Engine) -> None:
    events = run(engine, KINDS)
    assert failures(events) == {}
    assert_as_alone(songs_of(events), KINDS)


def test_while_a_song_is_decoded_nobody_else_has_a_forward_or_begins(engine: Engine) -> None:
    KINDS["usual"].add_to(engine, "first")
    events: list[Event] = []
    while not any(isinstance(event, Moved) and event.progress.stage == "decoding" for event in events):
        events = engine.step()
    KINDS["heun"].add_to(engine, "second")
    while not any(isinstance(event, Finished) for event in events):
        events = engine.step()
        assert {event.request_id for event in events} == {"first"}


def test_a_long_song_has_its_share_beside_short_ones_that_never_end(engine: Engine) -> None:
    """Of them, one is decoded every few forwards."""
    Wish(replace(PARAMS, duration_s=8.0, steps=10)).add_to(engine, "long")
    short, added = Wish(replace(PARAMS, steps=2, guidance_scale=1.0)), 0
    while "long" in engine._requests:
        while len(engine._requests) < 4:
            added += 1
            assert added < 500, "the long song starves"
            short.add_to(engine, str(added))
        engine.step()
