"""What goes wrong with one request in an engine is not another's trouble, and what can be tried again is."""

import weakref
from collections.abc import Callable
from dataclasses import replace
from math import nan
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from acestep_engine import devices, guidance
from acestep_engine.context import ContextBuilder
from acestep_engine.decode import check_finite
from acestep_engine.errors import LatentShapeError, NumericalError, ParameterError
from acestep_engine.model.packing import Context, Packing
from acestep_engine.requests import Finished, Inputs, songs_of
from tests.engine.small import conditioning, small_autoencoder, small_engine, small_transformer
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
        engine.add("broken", replace(PARAMS, duration_s=duration_s), Inputs(broken))
        events = run(engine, KINDS)
        assert_as_alone(songs_of(events), KINDS)
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
    engine.add("unfit", PARAMS, Inputs(replace(conditioning(), text=unfit)))
    events = run(engine, {"other": KINDS["usual"]})
    assert failures(events).keys() == {"unfit"}
    assert_as_alone(songs_of(events), {"other": KINDS["usual"]})


def test_lyrics_of_another_vocabulary_fail_alone() -> None:
    engine = small_engine()
    for token in (5000, -1):
        engine.add(str(token), PARAMS, Inputs(replace(conditioning(), lyric_ids=np.array([token] * 7))))
    events = run(engine, {"other": KINDS["usual"]})
    assert failures(events).keys() == {"5000", "-1"}
    for error in failures(events).values():  # found before a GPU is asked, which would not answer again
        assert "the model knows 20" in str(error)
    assert_as_alone(songs_of(events), {"other": KINDS["usual"]})


def test_a_request_that_lacks_what_its_task_needs_fails_alone() -> None:
    engine = small_engine()
    engine.add("no source", replace(PARAMS, task="repaint"), Inputs(conditioning()))
    latents = np.zeros((8, 16, 5), np.float32)
    engine.add("no target", replace(PARAMS, task="edit"), Inputs(conditioning(), source=latents))
    engine.add("no latents", replace(PARAMS, task="edit"), Inputs(conditioning(), source=latents[:4]))
    events = run(engine, {"other": KINDS["usual"]})
    found = {name: type(error) for name, error in failures(events).items()}
    assert found == {"no source": ParameterError, "no target": ParameterError, "no latents": LatentShapeError}
    assert_as_alone(songs_of(events), {"other": KINDS["usual"]})


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
    assert_as_alone(songs_of(events), KINDS)


@pytest.fixture
def room_for_three_contexts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A device whose memory holds three contexts at a time; how many there were whenever one more was built."""
    alive: list[weakref.ref[Context]] = []
    held: list[int] = []
    build = ContextBuilder._build

    def build_where_there_is_room(*args: Any) -> Context:
        held.append(sum(context() is not None for context in alive))
        if held[-1] == 3:
            raise torch.OutOfMemoryError("no room for another context")
        context = build(*args)
        alive.append(weakref.ref(context))
        return context

    for wish in KINDS.values():
        alone(wish)
    monkeypatch.setattr(ContextBuilder, "_build", build_where_there_is_room)
    return held


def test_a_request_that_finds_no_memory_waits_until_there_is_some(room_for_three_contexts: list[int]) -> None:
    events = run(small_engine(), KINDS)
    assert failures(events) == {}
    assert_as_alone(songs_of(events), KINDS)
    assert room_for_three_contexts.count(3) < 2 * len(KINDS)  # it is not tried before each step


def test_a_request_that_finds_no_memory_alone_fails() -> None:
    engine = small_engine()

    def refuse(module: nn.Module, args: tuple[Any, ...]) -> None:
        raise torch.OutOfMemoryError("no room for these lyrics")

    KINDS["usual"].add_to(engine, "one")
    handle = small_transformer().lyric_encoder.register_forward_pre_hook(refuse)
    events = drain(engine)
    handle.remove()
    assert isinstance(failures(events)["one"], torch.OutOfMemoryError)
    assert_as_alone(songs_of(run(engine, {"one": KINDS["usual"]})), {"one": KINDS["usual"]})


def test_a_song_that_does_not_fit_alone_fails_alone() -> None:
    engine, large = small_engine(), Wish(replace(PARAMS, duration_s=8.0))
    with before_forwards(room_for(45)):
        events = run(engine, KINDS | {"large": large})
    (error,) = failures(events).values()
    assert isinstance(error, torch.OutOfMemoryError)
    assert failures(events).keys() == {"large"}
    assert_as_alone(songs_of(events), KINDS)
    assert_as_alone(songs_of(run(engine, {"large": large})), {"large": large})  # there is room again


def test_a_song_that_fits_alone_waits_for_the_memory_of_others() -> None:
    """Its forwards find no room as long as anybody else has begun; who comes meanwhile does not take their place."""
    engine, late = small_engine(), KINDS["usual"]
    large = Wish(replace(PARAMS, duration_s=8.0, guidance_interval=1.0), priority=1)

    def look(packing: Packing) -> None:
        begun = sum(request.task is not None for request in engine._requests.values())
        if begun > 1 and packing.tokens > 100:
            raise torch.OutOfMemoryError("others hold it")

    expected = {name: alone(wish) for name, wish in (KINDS | {"large": large, "late": late}).items()}
    with before_forwards(look):
        for name, wish in (KINDS | {"large": large}).items():
            wish.add_to(engine, name)
        events = []
        while engine._requests["large"].too_many is None:
            events += engine.step()
        late.add_to(engine, "late")
        events += drain(engine)
    assert failures(events) == {}
    found = songs_of(events)
    assert found.keys() == expected.keys()
    for name, song in found.items():
        assert_same(song, expected[name])
    finished = [event.request_id for event in events if isinstance(event, Finished)]
    assert finished.index("large") < finished.index("late")


def test_who_has_nobody_to_wait_for_but_those_that_wait_themselves_fails() -> None:
    engine, wish = small_engine(), KINDS["usual"]

    def look(packing: Packing) -> None:
        if sum(request.task is not None for request in engine._requests.values()) > 1:
            raise torch.OutOfMemoryError("others hold it")

    with before_forwards(look):
        wish.add_to(engine, "one")
        wish.add_to(engine, "other")
        events = drain(engine)
    assert len(failures(events)) == 1  # one pauses; the other has nobody to wait for
    assert len(songs_of(events)) == 1


def test_memory_that_is_short_for_a_moment_fails_nobody() -> None:
    """More often than a request may fail to fit alone, but never twice in a row."""
    engine, wish, forwards = small_engine(), KINDS["usual"], iter(range(1000))

    def look(packing: Packing) -> None:
        if next(forwards) % 2 == 0:
            raise torch.OutOfMemoryError("for a moment")

    with before_forwards(look):
        assert_as_alone(songs_of(run(engine, {"one": wish})), {"one": wish})


def test_noise_that_was_drawn_for_a_step_that_failed_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory runs out after one of them has taken its step already."""
    wishes = {"pingpong": KINDS["no erg"], "other": Wish(replace(PARAMS, duration_s=2.0, guidance_interval=1.0))}
    wishes["pingpong"] = replace(wishes["pingpong"], params=replace(wishes["pingpong"].params, cfg_type="cfg"))
    expected = {name: alone(wish) for name, wish in wishes.items()}
    monkeypatch.setattr(guidance, "apg", short_once(guidance.apg))
    found = songs_of(run(small_engine(), wishes))
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
    assert_as_alone(songs_of(events), KINDS)
    for name in KINDS:
        counts = [one.step for one in progress(events, name) if one.stage == "diffusion"]
        assert counts == list(range(len(counts)))


def test_a_failure_holds_no_tensors() -> None:
    """Its traceback would: of a shared forward, one of its own, the conditioning and the latents."""
    engine, culprit = small_engine(), Wish(replace(PARAMS, duration_s=2.0))
    with before_forwards(refuse_width(21)):
        events = run(engine, {"culprit": culprit, "other": KINDS["usual"]}) + run(engine, {"culprit alone": culprit})
    engine.add("broken", PARAMS, Inputs(replace(conditioning(), text=np.full_like(conditioning().text, nan))))
    engine.add("unfit", replace(PARAMS, task="repaint"), Inputs(conditioning()))
    errors = failures(events + drain(engine))
    assert errors.keys() == {"culprit", "culprit alone", "broken", "unfit"}
    assert [error.__traceback__ for error in errors.values()] == [None] * 4


@pytest.mark.parametrize("part", ["lyric_encoder", "final_layer"])
def test_a_lost_device_is_everybodys_trouble(part: str) -> None:
    """When a request begins, or in a forward."""

    def fail(module: nn.Module, args: tuple[Any, ...]) -> None:
        raise torch.AcceleratorError("an illegal address")

    engine = small_engine()
    KINDS["usual"].add_to(engine, "one")
    handle = getattr(small_transformer(), part).register_forward_pre_hook(fail)
    with pytest.raises(torch.AcceleratorError):
        engine.step()
    handle.remove()


@pytest.mark.parametrize("part", ["lyric_encoder", "final_layer"])
@pytest.mark.parametrize("works", [True, False])
def test_a_gpu_that_refuses_one_kernel_and_still_answers_is_not_lost(
    monkeypatch: pytest.MonkeyPatch, part: str, works: bool
) -> None:
    """torch raises the same class of error for both."""
    trouble = [torch.AcceleratorError("CUDA error: invalid configuration argument")]

    def fail(module: nn.Module, args: tuple[Any, ...]) -> None:
        if trouble:
            raise trouble.pop()

    engine = small_engine()
    engine.device = torch.device("cuda")
    monkeypatch.setattr(devices, "answers", lambda device: works)
    KINDS["usual"].add_to(engine, "one")
    handle = getattr(small_transformer(), part).register_forward_pre_hook(fail)
    try:
        if works:
            assert isinstance(failures(drain(engine))["one"], torch.AcceleratorError)
        else:
            with pytest.raises(torch.AcceleratorError):
                drain(engine)
    finally:
        handle.remove()
    if works:
        assert_as_alone(songs_of(run(engine, {"other": KINDS["usual"]})), {"other": KINDS["usual"]})


@pytest.mark.parametrize("text", ["CUDA error: out of memory", "Triton Error [CUDA]: out of memory"])
def test_memory_that_cuda_itself_lacks_is_freed_and_loses_nobody(text: str) -> None:
    """For a kernel that is launched for the first time, say: torch's allocator holds the rest of the memory."""
    trouble = [torch.AcceleratorError(text)]

    def look(packing: Packing) -> None:
        if trouble:
            raise trouble.pop()

    engine = small_engine()
    with before_forwards(look):
        assert_as_alone(songs_of(run(engine, {"one": KINDS["usual"]})), {"one": KINDS["usual"]})


def test_a_window_that_did_not_fit_once_is_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {name: alone(wish) for name, wish in KINDS.items()}
    codec = small_autoencoder()
    monkeypatch.setattr(codec, "mel_to_audio", short_once(codec.mel_to_audio))
    found = songs_of(run(small_engine(), KINDS))
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
    found = songs_of(events)
    assert found.keys() == expected.keys()
    for name, song in found.items():
        assert_same(song, expected[name])


def test_a_song_whose_decoding_finds_no_room_beside_others_is_decoded_when_they_have_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = {name: alone(wish) for name, wish in KINDS.items()}
    frames, refused = expected["unguided"].latents.shape[-1], 0
    engine, codec = small_engine(), small_autoencoder()
    act = codec.latents_to_image

    def refuse(latents: torch.Tensor) -> torch.Tensor:
        nonlocal refused
        begun = sum(request.task is not None for request in engine._requests.values())
        if latents.shape[-1] == frames and begun > 3:
            refused += 1
            raise torch.OutOfMemoryError("others hold it")
        return act(latents)

    monkeypatch.setattr(codec, "latents_to_image", refuse)
    events = run(engine, KINDS)
    assert 0 < refused <= 2 * len(KINDS)  # it is not tried before each step
    assert failures(events) == {}
    found = songs_of(events)
    assert found.keys() == expected.keys()
    for name, song in found.items():
        assert_same(song, expected[name])


def test_an_allocator_that_says_so_by_its_text_only_is_out_of_memory_too() -> None:
    trouble = [RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")]

    def look(packing: Packing) -> None:
        if trouble:
            raise trouble.pop()

    engine = small_engine()
    with before_forwards(look):
        events = run(engine, KINDS)
    assert failures(events) == {}
    assert engine.scheduler.max_tokens < 1000
    assert_as_alone(songs_of(events), KINDS)


def test_audio_that_does_not_fit_is_a_failure_not_a_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acestep_engine.live_request.check_finite", short_once(check_finite))
    events = run(small_engine(), {"one": KINDS["usual"]})
    assert isinstance(failures(events)["one"], torch.OutOfMemoryError)
