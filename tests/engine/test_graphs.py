"""Forwards that are recorded and replayed answer as those that are not."""

import gc
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from acestep_engine import calibrate, graphs
from acestep_engine.batch import Batch
from acestep_engine.calibrate import ROW_FRAMES, graphed_transformer, recording_pays_up_to
from acestep_engine.graphs import PLAIN_FORWARDS, GraphedTransformer, Recorded, Recorder
from acestep_engine.model.packing import GAP_FRAMES
from acestep_engine.requests import songs_of
from tests.engine.replayed import Replayed
from tests.engine.small import CPU, Ask, batch, small_engine
from tests.engine.wishes import KINDS, assert_as_alone, drain, run, steps

pytestmark = pytest.mark.usefixtures("one_thread")

MANY = 10_000
ROW_TOKENS = ROW_FRAMES + GAP_FRAMES


def graphed(record: Recorder, most_tokens: int = MANY) -> Batch:
    recording = batch()
    recording.graphed = GraphedTransformer(recording.transformer, record, most_tokens)
    return recording


def same(found: Sequence[Sequence[Tensor]], expected: Sequence[Sequence[Tensor]]) -> bool:
    return all(torch.equal(*rows) for pair in zip(found, expected, strict=True) for rows in zip(*pair, strict=True))


def test_songs_of_all_kinds_come_out_as_alone() -> None:
    engine, record = small_engine(), Replayed()
    engine.batch.graphed = GraphedTransformer(engine.transformer, record, MANY)
    kinds = {name: replace(wish, params=replace(wish.params, steps=12)) for name, wish in KINDS.items()}

    for name, wish in kinds.items():  # alone: a company that stays together
        assert_as_alone(songs_of(run(engine, {name: wish})), {name: wish})
    alone = record.replays
    assert_as_alone(songs_of(run(engine, kinds)), kinds)

    assert alone > 3 * record.recorded > 0
    assert record.replays > alone


@pytest.mark.parametrize("joining", KINDS)
def test_one_that_joins_a_recorded_company_changes_no_song(joining: str) -> None:
    engine, record = small_engine(), Replayed()
    engine.batch.graphed = GraphedTransformer(engine.transformer, record, MANY)
    long = {name: replace(KINDS[name], params=replace(KINDS[name].params, steps=12)) for name in ("usual", joining)}
    wishes = {"running": long["usual"], "joining": long[joining]}
    wishes["running"].add_to(engine, "running")
    events = steps(engine, PLAIN_FORWARDS + 2)
    assert record.replays > 0
    wishes["joining"].add_to(engine, "joining")

    assert_as_alone(songs_of(events + drain(engine)), wishes)


@settings(max_examples=25)
@given(
    forwards=st.lists(
        st.tuples(st.booleans(), st.lists(st.sampled_from([900.0, 20.0]), min_size=3, max_size=3)),
        min_size=3,
        max_size=12,
    )
)
def test_whatever_rows_of_a_company_share_they_get_their_velocities(forwards: list[tuple[bool, list[float]]]) -> None:
    """Rows that share latents or a timestep are computed from one copy, which is another graph than for two copies."""
    company = [Ask(5, query_scales=(1.0, 0.01), seed=1), Ask(9, seed=2), Ask(5, seed=3)]
    shares = [ask.share() for ask in company]
    recording, plain = graphed(Replayed()), batch()
    for number, (apart, timesteps) in enumerate(forwards, 1):
        asked = []
        for share, timestep in zip(shares, timesteps, strict=True):
            moved = share.queries[0].latents * number
            songs = [moved, 2 * moved] if apart else [moved, moved]
            queries = (
                replace(query, timestep=timestep, latents=song)
                for query, song in zip(share.queries, songs, strict=False)
            )
            asked.append(replace(share, queries=tuple(queries)))
        assert same(recording.forward(asked), plain.forward(asked))


def test_answers_are_not_written_over_by_the_next_forward() -> None:
    recording, share = graphed(Replayed()), Ask(5).share()
    for _ in range(PLAIN_FORWARDS):
        recording.forward([share])
    first = recording.forward([share])
    kept = [[velocity.clone() for velocity in of_one] for of_one in first]
    (query,) = share.queries
    recording.forward([replace(share, queries=(replace(query, latents=2 * query.latents),))])
    assert same(first, kept)


def test_a_company_is_recorded_once_and_only_if_it_stays() -> None:
    record = Replayed()
    recording, together = graphed(record), [Ask(5, seed=1).share(), Ask(9, seed=2).share()]
    for _ in range(PLAIN_FORWARDS):
        recording.forward(together)
        recording.forward(together[:1])
    assert record.recorded == 0
    for _ in range(5):
        recording.forward(together)
    assert (record.recorded, record.replays) == (1, 5)


def test_forwards_that_keep_a_gpu_busy_are_not_recorded() -> None:
    record, share = Replayed(), Ask(30).share()
    for most_tokens in (30, 31):  # and its gap
        recording = graphed(record, most_tokens)
        for _ in range(PLAIN_FORWARDS + 1):
            recording.forward([share])
        assert record.recorded == (1 if most_tokens == 31 else 0)


@dataclass
class Failing:
    """A recorder that cannot, and notes how often it was asked."""

    error: RuntimeError
    asked: int = 0

    def __call__(self, work: Callable[[], Sequence[Tensor]]) -> Recorded:
        self.asked += 1
        raise self.error


def test_what_cannot_be_recorded_runs_plainly_from_then_on(caplog: pytest.LogCaptureFixture) -> None:
    record, share = Failing(RuntimeError("operation not permitted when stream is capturing")), Ask(5).share()
    recording, expected = graphed(record), batch().forward([share])
    for _ in range(PLAIN_FORWARDS + 3):
        assert same(recording.forward([share]), expected)
    assert record.asked == 1
    assert "not permitted" in caplog.text


def test_a_forward_that_memory_runs_out_for_twice_is_not_recorded_any_more(caplog: pytest.LogCaptureFixture) -> None:
    record, share = Failing(torch.OutOfMemoryError("CUDA out of memory")), Ask(5).share()
    recording, expected = graphed(record), batch().forward([share])
    for _ in range(3 * (PLAIN_FORWARDS + 1)):
        assert same(recording.forward([share]), expected)
    assert record.asked == 2
    assert "over 5 tokens" in caplog.text

    smaller = Ask(4).share()
    for _ in range(PLAIN_FORWARDS + 1):
        recording.forward([smaller])
    assert record.asked == 3


def test_a_replay_that_fails_is_answered_plainly() -> None:
    def record(work: Callable[[], Sequence[Tensor]]) -> Recorded:
        def replay() -> None:
            raise RuntimeError("CUDA error: no memory for the graph")

        return Recorded(work(), replay)

    recording, share = graphed(record), Ask(5).share()
    expected = batch().forward([share])
    for _ in range(PLAIN_FORWARDS + 2):
        assert same(recording.forward([share]), expected)


def test_what_was_recorded_is_let_go_of_with_its_packing() -> None:
    recording, ask = graphed(Replayed()), Ask(5)
    share = ask.share()
    context = weakref.ref(share.context)
    for _ in range(PLAIN_FORWARDS + 1):
        recording.forward([share])
    del share
    recording.forget_packings()
    gc.collect()
    assert context() is None


def test_only_a_few_companies_are_kept() -> None:
    record = Replayed()
    recording = graphed(record)
    shares = [Ask(frames).share() for frames in range(1, graphs.KEPT_COMPANIES + 2)]
    for share in [*shares, shares[0]]:
        for _ in range(PLAIN_FORWARDS + 1):
            recording.forward([share])
    assert record.recorded == len(shares) + 1


# The trial at start


def trial(record: Recorder, monkeypatch: pytest.MonkeyPatch, seconds: Callable[[bool], float]) -> int:
    """`seconds` of a forward, by whether it is recorded."""
    tried = batch()

    def measure(work: Callable[[], object], device: torch.device) -> float:
        work()
        return seconds(tried.graphed is not None)

    monkeypatch.setattr(calibrate, "_seconds", measure)
    found = recording_pays_up_to(tried, CPU, record, 4 * ROW_FRAMES)
    assert tried.graphed is None
    return found


def test_forwards_are_recorded_as_far_as_that_makes_them_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trial(Replayed(), monkeypatch, lambda recorded: 1.0 if recorded else 1.2) == 4 * ROW_TOKENS
    assert trial(Replayed(), monkeypatch, lambda recorded: 1.0) == 0

    of_two = iter([1.2, 1.0, 1.2, 1.2])
    assert trial(Replayed(), monkeypatch, lambda recorded: next(of_two)) == ROW_TOKENS


def test_forwards_whose_answers_differ_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(work: Callable[[], Sequence[Tensor]]) -> Recorded:
        answers = [1.1 * answer for answer in work()]
        return Recorded(answers, lambda: None)

    def never_replayed(work: Callable[[], Sequence[Tensor]]) -> Recorded:
        return Recorded(work(), lambda: None)

    for record in (wrong, never_replayed, Failing(RuntimeError("not on this GPU"))):
        assert trial(record, monkeypatch, lambda recorded: 1.0 if recorded else 2.0) == 0


def test_without_a_gpu_nothing_is_recorded(caplog: pytest.LogCaptureFixture) -> None:
    assert small_engine().batch.graphed is None
    if not torch.cuda.is_available():
        assert graphed_transformer(batch(), torch.device("cuda"), True, 1000) is None
        assert "cannot become CUDA graphs" in caplog.text


# What fails later


def recorder_of_replays(failure: Exception, working: int) -> tuple[Recorder, list[int]]:
    """A recorder whose replays fail once so many worked; and a list of what was recorded."""
    recorded: list[int] = []

    def record(work: Callable[[], Sequence[Tensor]]) -> Recorded:
        recorded.append(len(recorded))
        answers, left = work(), [None] * working

        def replay() -> None:
            if not left:
                raise failure
            left.pop()
            for answer, found in zip(answers, work(), strict=True):
                answer.copy_(found)

        return Recorded(answers, replay)

    return record, recorded


@pytest.mark.parametrize(
    "failure", [RuntimeError("CUDA error: unspecified"), torch.AcceleratorError("CUDA error"), OSError("of a driver")]
)
def test_a_replay_that_fails_after_many_loses_no_song_and_nothing_is_recorded_any_more(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    engine, wish = small_engine(), replace(KINDS["usual"], params=replace(KINDS["usual"].params, steps=12))
    record, recorded = recorder_of_replays(failure, working=3)
    engine.batch.graphed = GraphedTransformer(engine.transformer, record, MANY)
    assert_as_alone(songs_of(run(engine, {"one": wish})), {"one": wish})
    until_then = len(recorded)
    assert until_then > 0
    assert_as_alone(songs_of(run(engine, {"two": wish})), {"two": wish})
    assert len(recorded) == until_then
    assert caplog.text.count("do not become CUDA graphs any more") == 1


def test_a_replay_that_finds_no_memory_is_answered_plainly_and_recorded_once_more() -> None:
    record, recorded = recorder_of_replays(torch.OutOfMemoryError("CUDA out of memory"), working=1)
    recording, share = graphed(record), Ask(5).share()
    expected = batch().forward([share])
    for _ in range(2 * PLAIN_FORWARDS + 3):
        assert same(recording.forward([share]), expected)
    assert len(recorded) == 2


def test_a_recorder_that_fails_in_any_way_at_the_trial_leaves_forwards_plain(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def recorder(device: torch.device) -> Recorder:
        raise AttributeError("this torch has no such thing")

    monkeypatch.setattr(calibrate, "CudaRecorder", recorder)
    for wanted in (True, None):
        assert graphed_transformer(batch(), CPU, wanted, 1000) is None
    assert caplog.text.count("has no such thing") == 2


def test_a_trial_that_runs_out_of_memory_leaves_forwards_plain(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def seconds(work: Callable[[], object], device: torch.device) -> float:
        raise torch.OutOfMemoryError("no room for a trial")

    monkeypatch.setattr(calibrate, "CudaRecorder", lambda device: Replayed())
    monkeypatch.setattr(calibrate, "_seconds", seconds)
    tried = batch()
    assert graphed_transformer(tried, CPU, None, 1000) is None
    assert tried.graphed is None
    assert "no room for a trial" in caplog.text


class FakeGraph:
    """A graph whose recording begins or ends as it is told."""

    def __init__(self, begin: Exception | None = None, end: Exception | None = None) -> None:
        self._begin, self._end = begin, end

    def capture_begin(self, pool: object, capture_error_mode: str) -> None:
        if self._begin is not None:
            raise self._begin

    def capture_end(self) -> None:
        if self._end is not None:
            raise self._end


@pytest.fixture
def fake_recorder(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeGraph], graphs.CudaRecorder]:
    """The real recorder on a GPU that is not there; each `_cuda_endAllocateToPool` is noted in its `closed`."""

    def make(graph: FakeGraph) -> graphs.CudaRecorder:
        closed: list[object] = []
        stream = SimpleNamespace(wait_stream=lambda other: None)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *pool: closed.append(pool), raising=False)
        monkeypatch.setattr(graphs.CudaRecorder, "_failed", [])
        recorder = object.__new__(graphs.CudaRecorder)
        recorder.__dict__.update(_device=torch.device("cuda", 0), _pool=(0, 7), _stream=stream, closed=closed)
        return recorder

    return make


@pytest.mark.parametrize("begins", [True, False])
def test_a_recording_that_cannot_be_ended_gives_the_allocator_back_and_says_what_failed_first(
    fake_recorder: Callable[[FakeGraph], graphs.CudaRecorder], begins: bool
) -> None:
    graph = FakeGraph(
        begin=None if begins else RuntimeError("first"), end=RuntimeError("failed due to a previous error")
    )

    def work() -> Sequence[Tensor]:
        raise RuntimeError("first")

    record = fake_recorder(graph)
    with pytest.raises(RuntimeError, match="first"):
        record(work)
    assert record.__dict__["closed"] == [(0, (0, 7))]
    del record
    assert graphs.CudaRecorder._failed == [graph]  # whoever recorded it: the allocators look at it


def test_a_recording_whose_end_fails_is_a_failure(
    fake_recorder: Callable[[FakeGraph], graphs.CudaRecorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = fake_recorder(FakeGraph(end=RuntimeError("out of memory for the graph")))
    monkeypatch.delattr(torch._C, "_cuda_endAllocateToPool")  # private: a later torch may not have it
    with pytest.raises(RuntimeError, match="for the graph"):
        record(lambda: [torch.zeros(1)])
