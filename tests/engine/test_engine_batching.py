"""Many requests in one engine: each gets the song it would get alone."""

import weakref
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep_engine.lanes import Lanes
from acestep_engine.params import CFG_TYPES, SCHEDULERS, GenerationParams, Progress
from acestep_engine.requests import Decoded, Event, Failed, Finished, Moved, songs_of
from tests.engine.small import small_engine, small_transformer
from tests.engine.wishes import (
    KINDS,
    PARAMS,
    Wish,
    alone,
    assert_as_alone,
    assert_same,
    before_forwards,
    drain,
    progress,
    run,
    runs_of,
    steps,
)

pytestmark = pytest.mark.usefixtures("one_thread")


# The same music


def test_all_kinds_together_make_the_songs_they_make_alone() -> None:
    assert_as_alone(songs_of(run(small_engine(), KINDS)), KINDS)


def test_a_budget_that_makes_them_take_turns_changes_nothing() -> None:
    assert_as_alone(songs_of(run(small_engine(max_tokens=40), KINDS)), KINDS)


def test_one_at_a_time_changes_nothing() -> None:
    assert_as_alone(songs_of(run(small_engine(max_tokens=1), KINDS)), KINDS)


@pytest.mark.parametrize("joining", KINDS)
@pytest.mark.parametrize("running", KINDS)
def test_a_request_joining_midway_changes_neither_song(running: str, joining: str) -> None:
    engine, wishes = small_engine(), {"running": KINDS[running], "joining": KINDS[joining]}
    wishes["running"].add_to(engine, "running")
    events = steps(engine, 2)
    wishes["joining"].add_to(engine, "joining")
    assert_as_alone(songs_of(events + drain(engine)), wishes)


@pytest.mark.parametrize("leaving", KINDS)
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_request_leaving_early_changes_nobody_elses_song(leaving: str, after: int) -> None:
    engine, others = small_engine(), {name: wish for name, wish in KINDS.items() if name != leaving}
    for name, wish in KINDS.items():
        wish.add_to(engine, name)
    events = steps(engine, after)
    engine.abort(leaving)
    events += drain(engine)
    assert_as_alone({name: song for name, song in songs_of(events).items() if name in others}, others)


def test_what_finished_before_is_not_heard() -> None:
    engine = small_engine()
    run(engine, KINDS)
    assert_as_alone(songs_of(run(engine, {"again": KINDS["pingpong"]})), {"again": KINDS["pingpong"]})


def test_the_same_request_twice_is_the_same_song_twice() -> None:
    wishes = {"first": KINDS["pingpong"], "second": KINDS["pingpong"]}
    found = songs_of(run(small_engine(), wishes))
    assert_as_alone(found, wishes)


def test_a_long_pause_changes_nothing() -> None:
    """A song of less priority waits for many others, once their turns leave no room for it."""
    engine, paused = small_engine(max_tokens=20), KINDS["pingpong"]
    engine.scheduler.oldest_share = 0.001
    paused.add_to(engine, "paused")
    events = steps(engine, 2)
    assert progress(events, "paused")[-1].step == 2
    for number in range(15):
        replace(KINDS["usual"], priority=1).add_to(engine, f"urgent {number}")
    meanwhile = steps(engine, 40)
    assert progress(meanwhile, "paused") == []
    assert len(songs_of(meanwhile)) > 1
    assert_same(songs_of(drain(engine))["paused"], alone(paused))


params = st.builds(
    GenerationParams,
    prompt=st.just(""),
    lyrics=st.just(""),
    duration_s=st.sampled_from([0.1, 0.3, 0.7, 1.5]),
    seed=st.integers(0, 3),
    steps=st.integers(1, 5),
    scheduler=st.sampled_from(SCHEDULERS),
    cfg_type=st.sampled_from(CFG_TYPES),
    guidance_scale=st.sampled_from([1.0, 7.0, 15.0]),
    guidance_interval=st.sampled_from([0.0, 0.5, 1.0]),
    guidance_interval_decay=st.sampled_from([0.0, 0.5]),
    use_erg_lyric=st.booleans(),
    use_erg_diffusion=st.booleans(),
    oss_steps=st.sampled_from([(), (), (1, 2, 5)]),
    guidance_scale_text=st.sampled_from([0.0, 0.0, 5.0]),
    guidance_scale_lyric=st.just(1.5),
)
wishes = st.builds(Wish, params, prompt=st.integers(0, 2), lyric_tokens=st.integers(1, 9), priority=st.integers(0, 1))
actions = st.lists(wishes | st.integers(1, 6) | st.tuples(st.just("abort"), st.integers(0, 9)), min_size=2, max_size=12)


class Session:
    """An engine and all that was asked of it. Checks after each step what always holds."""

    def __init__(self, max_tokens: int, lanes: int) -> None:
        self.engine = small_engine(max_tokens, lanes=Lanes(lanes, cores=2))
        self.wishes: dict[str, Wish] = {}
        self.live: set[str] = set()
        self.steps_seen: dict[str, int] = {}
        self.told: list[Event] = []

    def add(self, wish: Wish) -> None:
        request_id = str(len(self.wishes))
        self.wishes[request_id] = wish
        self.live.add(request_id)
        wish.add_to(self.engine, request_id)

    def abort(self, index: int) -> None:
        """Of one that runs, is over, or never was."""
        self.engine.abort(str(index))
        self.live.discard(str(index))

    def step(self) -> None:
        for event in self.engine.step():
            assert event.request_id in self.live
            self.told.append(event)
            match event:
                case Moved(request_id, Progress("diffusion", step, forwards)):
                    assert step == self.steps_seen.get(request_id, -1) + 1
                    assert step <= forwards
                    self.steps_seen[request_id] = step
                case Finished(request_id=request_id):
                    self.live.discard(request_id)
                case Failed(error=error):
                    raise error
        assert self.engine.busy == bool(self.live)


@settings(max_examples=40)
@given(actions=actions, max_tokens=st.sampled_from([1, 30, 100, 1000]), lanes=st.sampled_from([1, 2]))
def test_whatever_comes_and_goes_every_song_is_the_one_made_alone(
    actions: Sequence[Wish | int | tuple[str, int]], max_tokens: int, lanes: int
) -> None:
    session = Session(max_tokens, lanes)
    for action in actions:
        match action:
            case Wish():
                session.add(action)
            case int():
                for _ in range(action):
                    session.step()
            case (_, index):
                session.abort(index)
    while session.live:
        session.step()
    for request_id, song in songs_of(session.told).items():
        assert_same(song, alone(replace(session.wishes[request_id], priority=0)))


# Coming and going


def test_nothing_to_do_is_no_event() -> None:
    engine = small_engine()
    assert engine.step() == []
    assert not engine.busy


def test_an_id_in_use_is_refused_and_free_again_afterwards() -> None:
    engine, wish = small_engine(), KINDS["usual"]
    wish.add_to(engine, "one")
    with pytest.raises(ValueError, match="'one'"):
        wish.add_to(engine, "one")
    assert_as_alone(songs_of(drain(engine)), {"one": wish})
    wish.add_to(engine, "one")
    steps(engine, 2)
    engine.abort("one")
    other = KINDS["heun"]
    other.add_to(engine, "one")
    assert_as_alone(songs_of(drain(engine)), {"one": other})


def test_an_unknown_id_is_not_there_to_abort() -> None:
    engine = small_engine()
    engine.abort("nobody")
    assert_as_alone(songs_of(run(engine, {"one": KINDS["usual"]})), {"one": KINDS["usual"]})


@pytest.mark.parametrize("after", range(8))
def test_an_aborted_request_is_gone_by_the_next_step(after: int) -> None:
    """Before it began, while it is denoised, while it is decoded."""
    engine = small_engine()
    KINDS["usual"].add_to(engine, "aborted")
    steps(engine, after)
    engine.abort("aborted")
    assert not engine.busy
    assert engine.step() == []


def test_an_aborted_request_holds_no_memory() -> None:
    engine, contexts = small_engine(), []
    with before_forwards(lambda packing: contexts.append(weakref.ref(packing.segments[0].context))):
        KINDS["usual"].add_to(engine, "aborted")
        steps(engine, 1)
    assert contexts[0]() is not None
    engine.abort("aborted")
    assert contexts[0]() is None


def test_a_song_that_is_decoded_attends_to_nothing_any_more() -> None:
    engine, contexts = small_engine(), []
    with before_forwards(lambda packing: contexts.append(weakref.ref(packing.segments[0].context))):
        KINDS["usual"].add_to(engine, "one")
        events = steps(engine, PARAMS.steps)
    assert progress(events, "one")[-1].stage == "decoding"
    assert contexts[0]() is None


def test_generate_leaves_nothing_behind_and_does_not_meddle_with_others() -> None:
    engine, wish = small_engine(), KINDS["usual"]

    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(wish.params, wish.inputs, on_progress=interrupt)
    assert not engine.busy
    wish.add_to(engine, "other")
    with pytest.raises(ValueError, match="1 request"):
        engine.generate(wish.params, wish.inputs)
    assert_as_alone(songs_of(drain(engine)), {"other": wish})


# Who goes first


def test_a_short_song_gets_into_the_next_forward_and_finishes_before_long_ones() -> None:
    long = Wish(replace(PARAMS, duration_s=24.0, steps=6))
    short = Wish(replace(PARAMS, duration_s=1.0, steps=6, seed=2), prompt=1)
    engine = small_engine(max_tokens=2 * 258)
    for number in range(3):
        replace(long, params=replace(long.params, seed=number)).add_to(engine, f"long {number}")
    steps(engine, 4)
    short.add_to(engine, "short")
    assert [one.step for one in progress(engine.step(), "short")] == [0, 1]
    events = drain(engine)
    assert next(iter(songs_of(events))) == "short"
    assert len(songs_of(events)) == 4
    before = events.index(next(event for event in events if isinstance(event, Finished)))
    assert before < 4 * (short.params.steps + 2)  # hardly anything but its own


def test_a_song_is_heard_in_order_while_it_is_decoded_and_windows_are_counted() -> None:
    wish = Wish(replace(PARAMS, duration_s=24.0, steps=2))
    events = run(small_engine(), {"long": wish})
    heard = [event for event in events if isinstance(event, Decoded)]
    assert len(heard) > 2
    assert events.index(heard[0]) < events.index(heard[-1]) < len(events) - 1
    audio = np.concatenate([event.samples for event in heard], axis=1)
    assert np.array_equal(audio, alone(wish).audio)
    assert {event.song_samples for event in heard} == {audio.shape[1]}
    windows = [one for one in progress(events, "long") if one.stage == "decoding"]
    assert windows == [Progress("decoding", done, len(windows) - 1) for done in range(len(windows))]


def test_a_higher_priority_finishes_first() -> None:
    engine = small_engine(max_tokens=1)
    for number, priority in enumerate([0, 1, 2]):
        wish = Wish(replace(PARAMS, duration_s=1.0, seed=number), priority=priority)
        wish.add_to(engine, f"priority {priority}")
    assert list(songs_of(drain(engine))) == ["priority 2", "priority 1", "priority 0"]


def test_every_request_is_told_each_of_its_forwards_once() -> None:
    events = run(small_engine(max_tokens=40), KINDS)
    for name, wish in KINDS.items():
        seen = progress(events, name)
        forwards = seen[0].steps
        diffusion = [Progress("diffusion", step, forwards) for step in range(forwards + 1)]
        assert seen[: forwards + 1] == diffusion
        assert {one.stage for one in seen[forwards + 1 :]} == {"decoding"}
        if wish.source is None:
            count = len(wish.params.oss_steps) or wish.params.steps
            assert forwards == (2 * count - 1 if wish.params.scheduler == "heun" else count)
    last = {event.request_id: event for event in events}
    assert all(isinstance(event, Finished) for event in last.values())


def test_requests_share_forwards() -> None:
    sizes: list[int] = []
    with before_forwards(lambda packing: sizes.append(len(packing.segments))):
        run(small_engine(), {str(seed): Wish(replace(PARAMS, seed=seed)) for seed in range(5)})
    assert sizes == [5] * PARAMS.steps


def test_shared_forwards_keep_to_the_budget() -> None:
    tokens: list[int] = []
    with before_forwards(lambda packing: tokens.append(sum(frames for _, frames in packing.row_frames()))):
        run(small_engine(max_tokens=40), KINDS)
    assert max(tokens) <= 40


# Nothing twice


def test_a_repeated_prompt_with_another_seed_skips_all_encoding() -> None:
    engine, wish = small_engine(), KINDS["usual"]
    again = replace(wish, params=replace(wish.params, seed=99))
    with runs_of(small_transformer().lyric_encoder) as calls:
        first = songs_of(run(engine, {"first": wish}))
        assert calls
        calls.clear()
        second = songs_of(run(engine, {"second": again}))
        assert not calls
    assert_as_alone(first | second, {"first": wish, "second": again})


def test_live_requests_of_equal_conditioning_share_a_context() -> None:
    contexts: list[list[int]] = []
    wish = KINDS["usual"]
    wishes = {
        "first": wish,
        "other seed": replace(wish, params=replace(wish.params, seed=99)),
        "other switch": replace(wish, params=replace(wish.params, use_erg_lyric=True)),
        "other prompt": replace(wish, prompt=77),
    }
    with before_forwards(lambda packing: contexts.append([id(segment.context) for segment in packing.segments])):
        found = songs_of(run(small_engine(), wishes))
    assert_as_alone(found, wishes)
    for first, seed, *others in contexts:
        assert first == seed
        assert len({first, *others}) == 3


def test_requests_of_the_same_schedule_share_their_timesteps_blocks() -> None:
    engine = small_engine()
    with runs_of(small_transformer().t_block) as calls:
        KINDS["usual"].add_to(engine, "first")
        steps(engine, 2)
        KINDS["pingpong"].add_to(engine, "of the same steps")
        drain(engine)
    assert len(calls) == PARAMS.steps
    with runs_of(small_transformer().t_block) as calls:
        run(engine, {"later": KINDS["usual"]})
    assert calls == []


def test_a_song_begins_beside_sources_that_are_still_to_be_encoded() -> None:
    engine = small_engine()
    for number in range(3):
        KINDS["from audio"].add_to(engine, f"source {number}")
    KINDS["usual"].add_to(engine, "short")
    begun = {event.request_id for event in engine.step()}
    assert begun == {"source 0", "short"}
