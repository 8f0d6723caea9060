"""Many requests in one engine: each gets the song it would get alone, and nobody's trouble is another's."""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from math import nan
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from acestep_engine import guidance
from acestep_engine.audio import SourceAudio
from acestep_engine.conditioning import Conditioning
from acestep_engine.decode import Decoding
from acestep_engine.engine import Engine, Event, Failed, Finished, Moved, Song
from acestep_engine.errors import NumericalError, ParameterError
from acestep_engine.model.packing import Packing
from acestep_engine.params import CFG_TYPES, SCHEDULERS, GenerationParams, Progress
from tests.engine.small import conditioning, small_autoencoder, small_engine, small_transformer
from tests.parity import relative_error

pytestmark = pytest.mark.usefixtures("one_thread")

GENERATION = 2e-3  # what is promised
EXACT = 2e-5  # what these small models keep to


@dataclass(frozen=True)
class Wish:
    """A request, by what can be compared and kept."""

    params: GenerationParams
    prompt: int = 0
    lyric_tokens: int = 7
    source_seed: int | None = None
    priority: int = 0

    @property
    def conditioning(self) -> Conditioning:
        return conditioning(self.prompt, lyric_tokens=self.lyric_tokens)

    @property
    def source(self) -> SourceAudio | None:
        if self.source_seed is None:
            return None
        noise = np.random.default_rng(self.source_seed).standard_normal((2, 20_000), dtype=np.float32)
        return SourceAudio(0.1 * noise, 44_100)

    def add_to(self, engine: Engine, request_id: str) -> None:
        engine.add(request_id, self.params, self.conditioning, self.source, self.priority)


@cache
def alone(wish: Wish) -> Song:
    return small_engine().generate(wish.params, wish.conditioning, wish.source)


PARAMS = GenerationParams("", "", 0.5, seed=1, steps=4)
DOUBLE = {"guidance_scale_text": 5.0, "guidance_scale_lyric": 1.5}

KINDS = {
    "usual": Wish(PARAMS),
    "one frame": Wish(replace(PARAMS, duration_s=0.1, seed=2), prompt=1),
    "heun": Wish(replace(PARAMS, scheduler="heun", cfg_type="cfg", seed=3, guidance_interval=1.0), prompt=2),
    "pingpong": Wish(replace(PARAMS, scheduler="pingpong", cfg_type="cfg_star", duration_s=1.0, seed=4), prompt=3),
    "double guidance": Wish(replace(PARAMS, **DOUBLE, steps=5, duration_s=0.9, seed=5), prompt=4, lyric_tokens=20),
    "erg": Wish(replace(PARAMS, use_erg_lyric=True, guidance_interval=0.8, seed=6), prompt=5),
    "no erg": Wish(replace(PARAMS, use_erg_diffusion=False, use_erg_tag=False, scheduler="pingpong", seed=7)),
    "unguided": Wish(replace(PARAMS, guidance_scale=1.0, duration_s=1.5, steps=2, seed=8), prompt=6),
    "decaying": Wish(replace(PARAMS, guidance_interval=1.0, guidance_interval_decay=0.7, steps=5, seed=9), prompt=7),
    "picked steps": Wish(replace(PARAMS, oss_steps=(1, 3, 4, 7), seed=10), prompt=8),
    "from audio": Wish(replace(PARAMS, task="audio2audio", ref_audio_strength=0.4, seed=11), source_seed=1),
}


def drain(engine: Engine, most: int = 2000) -> list[Event]:
    """All that happens until nobody is left."""
    events: list[Event] = []
    for _ in range(most):
        if not engine.busy:
            return events
        events += engine.step()
    raise AssertionError(f"{most} steps did not finish all requests")


def steps(engine: Engine, count: int) -> list[Event]:
    return [event for _ in range(count) for event in engine.step()]


def songs(events: Iterable[Event]) -> dict[str, Song]:
    return {event.request_id: event.song for event in events if isinstance(event, Finished)}


def failures(events: Iterable[Event]) -> dict[str, Exception]:
    return {event.request_id: event.error for event in events if isinstance(event, Failed)}


def progress(events: Iterable[Event], request_id: str) -> list[Progress]:
    return [event.progress for event in events if isinstance(event, Moved) and event.request_id == request_id]


def run(engine: Engine, wishes: Mapping[str, Wish]) -> list[Event]:
    """All of them together from the start, to the end."""
    for request_id, wish in wishes.items():
        wish.add_to(engine, request_id)
    return drain(engine)


def assert_same(found: Song, expected: Song, tolerance: float = EXACT) -> None:
    assert relative_error(torch.tensor(found.latents), torch.tensor(expected.latents)) <= tolerance
    assert relative_error(torch.tensor(found.audio), torch.tensor(expected.audio)) <= GENERATION


def assert_as_alone(found: Mapping[str, Song], wishes: Mapping[str, Wish]) -> None:
    assert found.keys() == wishes.keys()
    for request_id, wish in wishes.items():
        assert_same(found[request_id], alone(wish))


@contextmanager
def before_forwards(look: Callable[[Packing], None]) -> Iterator[None]:
    """Look at, or refuse, each forward of the transformer meanwhile."""

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        look(args[2])

    handle = small_transformer().register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def runs_of(module: nn.Module) -> Iterator[list[nn.Module]]:
    """As many entries as the module ran meanwhile."""
    calls: list[nn.Module] = []
    handle = module.register_forward_hook(lambda module, args, output: calls.append(module))
    try:
        yield calls
    finally:
        handle.remove()


# The same music


def test_all_kinds_together_make_the_songs_they_make_alone() -> None:
    assert_as_alone(songs(run(small_engine(), KINDS)), KINDS)


def test_a_budget_that_makes_them_take_turns_changes_nothing() -> None:
    assert_as_alone(songs(run(small_engine(max_tokens=40), KINDS)), KINDS)


def test_one_at_a_time_changes_nothing() -> None:
    assert_as_alone(songs(run(small_engine(max_tokens=1), KINDS)), KINDS)


@pytest.mark.parametrize("joining", KINDS)
@pytest.mark.parametrize("running", KINDS)
def test_a_request_joining_midway_changes_neither_song(running: str, joining: str) -> None:
    engine, wishes = small_engine(), {"running": KINDS[running], "joining": KINDS[joining]}
    wishes["running"].add_to(engine, "running")
    events = steps(engine, 2)
    wishes["joining"].add_to(engine, "joining")
    assert_as_alone(songs(events + drain(engine)), wishes)


@pytest.mark.parametrize("leaving", KINDS)
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_request_leaving_early_changes_nobody_elses_song(leaving: str, after: int) -> None:
    engine, others = small_engine(), {name: wish for name, wish in KINDS.items() if name != leaving}
    for name, wish in KINDS.items():
        wish.add_to(engine, name)
    events = steps(engine, after)
    engine.abort(leaving)
    events += drain(engine)
    assert_as_alone({name: song for name, song in songs(events).items() if name in others}, others)


def test_what_finished_before_is_not_heard() -> None:
    engine = small_engine()
    run(engine, KINDS)
    assert_as_alone(songs(run(engine, {"again": KINDS["pingpong"]})), {"again": KINDS["pingpong"]})


def test_the_same_request_twice_is_the_same_song_twice() -> None:
    wishes = {"first": KINDS["pingpong"], "second": KINDS["pingpong"]}
    found = songs(run(small_engine(), wishes))
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
    assert len(songs(meanwhile)) > 1
    assert_same(songs(drain(engine))["paused"], alone(paused))


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

    def __init__(self, max_tokens: int) -> None:
        self.engine = small_engine(max_tokens)
        self.wishes: dict[str, Wish] = {}
        self.live: set[str] = set()
        self.steps_seen: dict[str, int] = {}
        self.finished: dict[str, Song] = {}

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
            match event:
                case Moved(request_id, Progress("diffusion", step, forwards)):
                    assert step == self.steps_seen.get(request_id, -1) + 1
                    assert step <= forwards
                    self.steps_seen[request_id] = step
                case Finished(request_id, song):
                    self.finished[request_id] = song
                    self.live.discard(request_id)
                case Failed(error=error):
                    raise error
        assert self.engine.busy == bool(self.live)


@settings(max_examples=40)
@given(actions=actions, max_tokens=st.sampled_from([1, 30, 100, 1000]))
def test_whatever_comes_and_goes_every_song_is_the_one_made_alone(
    actions: Sequence[Wish | int | tuple[str, int]], max_tokens: int
) -> None:
    session = Session(max_tokens)
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
    for request_id, song in session.finished.items():
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
    assert_as_alone(songs(drain(engine)), {"one": wish})
    wish.add_to(engine, "one")
    steps(engine, 2)
    engine.abort("one")
    other = KINDS["heun"]
    other.add_to(engine, "one")
    assert_as_alone(songs(drain(engine)), {"one": other})


def test_an_unknown_id_is_not_there_to_abort() -> None:
    engine = small_engine()
    engine.abort("nobody")
    assert_as_alone(songs(run(engine, {"one": KINDS["usual"]})), {"one": KINDS["usual"]})


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
        engine.generate(wish.params, wish.conditioning, on_progress=interrupt)
    assert not engine.busy
    wish.add_to(engine, "other")
    with pytest.raises(ValueError, match="1 request"):
        engine.generate(wish.params, wish.conditioning)
    assert_as_alone(songs(drain(engine)), {"other": wish})


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
    assert next(iter(songs(events))) == "short"
    assert len(songs(events)) == 4
    before = events.index(next(event for event in events if isinstance(event, Finished)))
    assert before < 4 * (short.params.steps + 2)  # hardly anything but its own


def test_a_higher_priority_finishes_first() -> None:
    engine = small_engine(max_tokens=1)
    for number, priority in enumerate([0, 1, 2]):
        wish = Wish(replace(PARAMS, duration_s=1.0, seed=number), priority=priority)
        wish.add_to(engine, f"priority {priority}")
    assert list(songs(drain(engine))) == ["priority 2", "priority 1", "priority 0"]


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
        run(small_engine(max_tokens=30), KINDS)
    assert max(tokens) <= 30


# Nothing twice


def test_a_repeated_prompt_with_another_seed_skips_all_encoding() -> None:
    engine, wish = small_engine(), KINDS["usual"]
    again = replace(wish, params=replace(wish.params, seed=99))
    with runs_of(small_transformer().lyric_encoder) as calls:
        first = songs(run(engine, {"first": wish}))
        assert len(calls) == 1
        second = songs(run(engine, {"second": again}))
        assert len(calls) == 1
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
        found = songs(run(small_engine(), wishes))
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


# What goes wrong


def short_once(act: Callable[..., Any]) -> Callable[..., Any]:
    """Runs out of memory the first time, then does what it should."""
    trouble = [torch.OutOfMemoryError("no room")]

    def attempt(*args: Any) -> Any:
        if trouble:
            raise trouble.pop()
        return act(*args)

    return attempt


def test_a_request_whose_conditioning_is_not_finite_fails_alone() -> None:
    """Wherever it lies among them: requests are packed in the order of their lengths."""
    for duration_s in (0.1, 0.5, 2.0):
        engine = small_engine()
        broken = replace(conditioning(), text=np.full_like(conditioning().text, nan))
        engine.add("broken", replace(PARAMS, duration_s=duration_s), broken)
        events = run(engine, KINDS)
        assert_as_alone(songs(events), KINDS)
        (error,) = failures(events).values()
        assert isinstance(error, NumericalError)


@pytest.mark.parametrize(
    "unfit",
    [
        conditioning(text_tokens=3).text[:, :5],  # of another text encoder
        np.zeros((0, 12), dtype=np.float32)[:, :1],
    ],
)
def test_conditioning_that_does_not_fit_the_model_fails_alone(unfit: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    engine = small_engine()
    engine.add("unfit", PARAMS, replace(conditioning(), text=unfit))
    events = run(engine, {"other": KINDS["usual"]})
    assert failures(events).keys() == {"unfit"}
    assert_as_alone(songs(events), {"other": KINDS["usual"]})


def test_lyrics_of_another_vocabulary_fail_alone() -> None:
    engine = small_engine()
    engine.add("unfit", PARAMS, replace(conditioning(), lyric_ids=np.array([5000] * 7)))
    events = run(engine, {"other": KINDS["usual"]})
    assert failures(events).keys() == {"unfit"}
    assert_as_alone(songs(events), {"other": KINDS["usual"]})


def test_a_task_that_is_not_built_fails_alone() -> None:
    engine = small_engine()
    engine.add("repaint", replace(PARAMS, task="repaint"), conditioning())
    engine.add("no source", replace(PARAMS, task="audio2audio"), conditioning())
    events = run(engine, {"other": KINDS["usual"]})
    assert {type(error) for error in failures(events).values()} == {ParameterError}
    assert failures(events).keys() == {"repaint", "no source"}
    assert_as_alone(songs(events), {"other": KINDS["usual"]})


def room_for(tokens: int) -> Callable[[Packing], None]:
    """A device whose memory holds forwards of so many tokens."""

    def look(packing: Packing) -> None:
        if packing.tokens > tokens:
            raise torch.OutOfMemoryError(f"{packing.tokens} tokens do not fit")

    return look


def test_out_of_memory_shrinks_the_budget_and_loses_nobody() -> None:
    engine = small_engine()
    with before_forwards(room_for(45)):
        events = run(engine, KINDS)
    assert engine.scheduler.max_tokens < 1000
    assert failures(events) == {}
    assert_as_alone(songs(events), KINDS)


def test_a_song_that_does_not_fit_alone_fails_alone() -> None:
    engine, large = small_engine(), Wish(replace(PARAMS, duration_s=8.0))
    with before_forwards(room_for(45)):
        events = run(engine, KINDS | {"large": large})
    (error,) = failures(events).values()
    assert isinstance(error, torch.OutOfMemoryError)
    assert failures(events).keys() == {"large"}
    assert_as_alone(songs(events), KINDS)
    assert_as_alone(songs(run(engine, {"large": large})), {"large": large})  # there is room again


def test_memory_that_is_short_for_a_moment_fails_nobody() -> None:
    """More often than a request may fail to fit alone, but never twice in a row."""
    engine, wish, forwards = small_engine(), KINDS["usual"], iter(range(1000))

    def look(packing: Packing) -> None:
        if next(forwards) % 2 == 0:
            raise torch.OutOfMemoryError("for a moment")

    with before_forwards(look):
        assert_as_alone(songs(run(engine, {"one": wish})), {"one": wish})


def test_noise_that_was_drawn_for_a_step_that_failed_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory runs out after one of them has taken its step already."""
    wishes = {"pingpong": KINDS["no erg"], "other": Wish(replace(PARAMS, duration_s=2.0, guidance_interval=1.0))}
    wishes["pingpong"] = replace(wishes["pingpong"], params=replace(wishes["pingpong"].params, cfg_type="cfg"))
    expected = {name: alone(wish) for name, wish in wishes.items()}
    monkeypatch.setattr(guidance, "apg", short_once(guidance.apg))
    found = songs(run(small_engine(), wishes))
    for name, song in found.items():
        assert_same(song, expected[name])
    assert found.keys() == wishes.keys()


def refuse_width(frames: int) -> Callable[[Packing], None]:
    def look(packing: Packing) -> None:
        if any(of_row == frames for _, of_row in packing.row_frames()):
            raise RuntimeError("a kernel that fails")

    return look


def test_a_forward_that_fails_is_the_fault_of_one_request_only() -> None:
    """All of them get their forward of that step alone, once."""
    engine, culprit = small_engine(), Wish(replace(PARAMS, duration_s=2.0))
    with before_forwards(refuse_width(21)):
        events = run(engine, KINDS | {"culprit": culprit})
    assert failures(events).keys() == {"culprit"}
    assert str(failures(events)["culprit"]) == "a kernel that fails"
    assert_as_alone(songs(events), KINDS)
    for name in KINDS:
        counts = [one.step for one in progress(events, name) if one.stage == "diffusion"]
        assert counts == list(range(len(counts)))


def test_a_failure_holds_no_tensors() -> None:
    """Its traceback would: of a shared forward, one of its own, the conditioning and the latents."""
    engine, culprit = small_engine(), Wish(replace(PARAMS, duration_s=2.0))
    with before_forwards(refuse_width(21)):
        events = run(engine, {"culprit": culprit, "other": KINDS["usual"]}) + run(engine, {"culprit alone": culprit})
    engine.add("broken", PARAMS, replace(conditioning(), text=np.full_like(conditioning().text, nan)))
    engine.add("unfit", replace(PARAMS, task="repaint"), conditioning())
    errors = failures(events + drain(engine))
    assert errors.keys() == {"culprit", "culprit alone", "broken", "unfit"}
    assert [error.__traceback__ for error in errors.values()] == [None] * 4


def test_a_lost_device_is_everybodys_trouble() -> None:
    def look(packing: Packing) -> None:
        raise torch.AcceleratorError("an illegal address")

    engine = small_engine()
    KINDS["usual"].add_to(engine, "one")
    with before_forwards(look), pytest.raises(torch.AcceleratorError):
        engine.step()


def test_a_window_that_did_not_fit_once_is_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {name: alone(wish) for name, wish in KINDS.items()}
    codec = small_autoencoder()
    monkeypatch.setattr(codec, "mel_to_audio", short_once(codec.mel_to_audio))
    found = songs(run(small_engine(), KINDS))
    assert found.keys() == expected.keys()
    for name, song in found.items():
        assert_same(song, expected[name])


@pytest.mark.parametrize(("part", "frames_per_latent"), [("mel_to_audio", 8), ("latents_to_image", 1)])
def test_a_song_that_cannot_be_decoded_fails_alone(
    monkeypatch: pytest.MonkeyPatch, part: str, frames_per_latent: int
) -> None:
    others = {name: wish for name, wish in KINDS.items() if name != "unguided"}
    expected = {name: alone(wish) for name, wish in others.items()}
    frames = alone(KINDS["unguided"]).latents.shape[-1]
    codec = small_autoencoder()
    act = getattr(codec, part)

    def refuse(decoded: torch.Tensor, *args: Any) -> Any:
        if decoded.shape[-1] == frames * frames_per_latent:
            raise torch.OutOfMemoryError("no room to decode")
        return act(decoded, *args)

    monkeypatch.setattr(codec, part, refuse)
    events = run(small_engine(), KINDS)
    assert failures(events).keys() == {"unguided"}
    assert isinstance(failures(events)["unguided"], torch.OutOfMemoryError)
    found = songs(events)
    assert found.keys() == expected.keys()
    for name, song in found.items():
        assert_same(song, expected[name])


def test_audio_that_does_not_fit_is_a_failure_not_a_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decoding, "audio", property(short_once(lambda decoding: None)))
    events = run(small_engine(), {"one": KINDS["usual"]})
    assert isinstance(failures(events)["one"], torch.OutOfMemoryError)
