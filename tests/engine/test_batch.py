"""Requests that share a forward get the velocities they would get alone."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import permutations
from math import inf, nan
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from acestep_engine.batch import KEPT_MODULATIONS, KEPT_PACKINGS, Share
from acestep_engine.model.packing import Context, Packing, pack
from acestep_engine.tasks.state import Query
from tests.engine.small import Ask, batch, context, latents, small_transformer
from tests.parity import relative_error

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = {
    "a frame": Ask(1, timestep=1000.0),
    "short": Ask(11, timestep=3.5, context_tokens=40, seed=1),
    "guided": Ask(11, timestep=500.0, query_scales=(1.0, 1.0), seed=2),
    "weakened": Ask(30, timestep=900.0, query_scales=(1.0, 0.01), context_tokens=1, seed=3),
    "doubly guided": Ask(47, timestep=500.0, query_scales=(1.0, 0.01, 1.0), context_tokens=17, seed=4),
    "long": Ask(100, timestep=0.0, context_tokens=25, seed=5),
}

asks = st.builds(
    Ask,
    frames=st.integers(1, 100) | st.integers(1, 4),
    timestep=st.floats(0.0, 1000.0, width=32) | st.just(500.0),
    query_scales=st.lists(st.sampled_from([1.0, 0.01]), min_size=1, max_size=3).map(tuple),
    context_tokens=st.integers(1, 40),
    seed=st.integers(0, 2**16),
)


def forward(asks: Sequence[Ask]) -> list[list[Tensor]]:
    return batch().forward([ask.share() for ask in asks])


def worst(found: Sequence[Sequence[Tensor]], expected: Sequence[Sequence[Tensor]]) -> float:
    """The largest relative error of any row of any request."""
    return max(
        relative_error(*rows)
        for of_one, of_same in zip(found, expected, strict=True)
        for rows in zip(of_one, of_same, strict=True)
    )


# Exactness


@pytest.mark.parametrize("other", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_neighbour_of_any_kind_changes_nothing(kind: str, other: str) -> None:
    asked, beside = KINDS[kind], replace(KINDS[other], seed=99)
    (alone,) = forward([asked])
    assert worst([forward([asked, beside])[0], forward([beside, asked])[1]], [alone, alone]) <= 1e-5


@settings(max_examples=60)
@given(st.lists(asks, min_size=1, max_size=6))
def test_whoever_else_takes_part_velocities_are_those_of_each_alone(company: list[Ask]) -> None:
    assert worst(forward(company), [forward([ask])[0] for ask in company]) <= 1e-5


def test_the_order_does_not_matter() -> None:
    company = list(KINDS.values())[:4]
    expected = dict(zip(company, forward(company), strict=True))
    for ordered in permutations(company):
        assert worst(forward(ordered), [expected[ask] for ask in ordered]) <= 1e-5


def test_every_query_of_every_share_is_answered_in_its_own_shape() -> None:
    company = list(KINDS.values())
    for ask, of_one in zip(company, forward(company), strict=True):
        assert [velocity.shape for velocity in of_one] == [(8, 16, ask.frames)] * len(ask.query_scales)


def test_a_request_may_take_part_twice() -> None:
    share = KINDS["guided"].share()
    first, second = batch().forward([share, share])
    assert worst([first], [second]) <= 1e-5


def test_rows_of_one_request_may_differ_in_latents_and_timestep() -> None:
    first, second = Query(latents(9, 1), 900.0, 0), Query(latents(9, 2), 100.0, 1)
    attended = context(2, 9)
    alone = [Share((query,), of_row(attended, row)) for row, query in enumerate((first, second))]
    (found,) = batch().forward([Share((first, second), attended)])
    assert worst([found], [[velocity for (velocity,) in batch().forward(alone)]]) <= 1e-5


def of_row(attended: Context, row: int) -> Context:
    return Context(tuple((k[row : row + 1], v[row : row + 1]) for k, v in attended.key_values))


# Faults stay where they are


def break_latents(share: Share, value: float) -> Share:
    return replace(share, queries=tuple(replace(query, latents=query.latents * value) for query in share.queries))


def break_last_frame(share: Share, value: float) -> Share:
    song = share.queries[0].latents.clone()
    song[3, 5, -1] = value
    return replace(share, queries=tuple(replace(query, latents=song) for query in share.queries))


def break_context(share: Share, value: float) -> Share:
    return replace(share, context=Context(tuple((k * value, v) for k, v in share.context.key_values)))


def break_values(share: Share, value: float) -> Share:
    return replace(share, context=Context(tuple((k, v * value) for k, v in share.context.key_values)))


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("value", [nan, inf, -inf])
@pytest.mark.parametrize("spoil", [break_latents, break_last_frame, break_context, break_values])
def test_what_is_not_finite_reaches_nobody_else(
    spoil: Callable[[Share, float], Share], value: float, place: int
) -> None:
    """Wherever the broken request lies: requests are packed in the order of their lengths."""
    company = [Ask(frames, query_scales=(1.0, 0.01), seed=frames) for frames in (5, 6, 6, 9)]
    shares = [ask.share() for ask in company]
    expected = batch().forward(shares)
    shares[place] = spoil(shares[place], value)
    found = batch().forward(shares)
    assert not all(velocity.isfinite().all() for velocity in found[place])
    for other in set(range(len(company))) - {place}:
        torch.testing.assert_close(found[other], expected[other], rtol=0, atol=0)


def test_what_overflows_in_one_request_reaches_nobody_else() -> None:
    small, large = Ask(5, seed=1), Ask(6, seed=2)
    (alone,) = forward([small])
    together, broken = batch().forward([small.share(), break_latents(large.share(), 1e38)])
    assert worst([together], [alone]) <= 1e-5
    assert not broken[0].isfinite().all()


# Nothing twice


@contextmanager
def counted(module: nn.Module) -> Iterator[list[nn.Module]]:
    """As many entries as the module has run since."""
    calls: list[nn.Module] = []
    hook = module.register_forward_hook(lambda module, args, output: calls.append(module))
    yield calls
    hook.remove()


def test_a_timestep_is_embedded_once_for_all_requests_and_forwards() -> None:
    together = batch()
    with counted(small_transformer().t_block) as calls:
        for timestep in (900.0, 500.0, 900.0):
            together.forward([Ask(3, timestep, (1.0, 1.0)).share(), Ask(5, timestep, seed=1).share()])
        assert len(calls) == 2
        together.forward([Ask(3, 900.0).share(), Ask(5, 100.0).share()])
        assert len(calls) == 3


def test_only_timesteps_used_lately_are_kept() -> None:
    together = batch()
    with counted(small_transformer().t_block) as calls:
        for timestep in [*range(KEPT_MODULATIONS + 1), 0]:
            together.forward([Ask(1, float(timestep)).share()])
    assert len(calls) == KEPT_MODULATIONS + 2


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[Packing]:
    """All packings that are made."""
    made: list[Packing] = []

    def pack_and_note(*args: Any) -> Packing:
        made.append(pack(*args))
        return made[-1]

    monkeypatch.setattr("acestep_engine.batch.pack", pack_and_note)
    return made


def test_the_same_company_is_packed_once(packed: list[Packing]) -> None:
    together, company = batch(), [Ask(5, seed=1), Ask(3, query_scales=(1.0, 0.01), seed=2)]
    shares = [ask.share() for ask in company]
    for timestep in (900.0, 500.0):
        moved = [replace(share, queries=at(share.queries, timestep)) for share in shares]
        found = together.forward(moved)
        expected = forward([replace(ask, timestep=timestep) for ask in company])
        assert worst(found, expected) <= 1e-5
    assert len(packed) == 1 + 2  # the fresh batches made two more


def at(queries: tuple[Query, ...], timestep: float) -> tuple[Query, ...]:
    return tuple(replace(query, timestep=timestep) for query in queries)


@pytest.mark.parametrize(
    "changed",
    [
        Ask(6, query_scales=(1.0, 0.01), seed=1),
        Ask(5, query_scales=(1.0, 1.0), seed=1),
        Ask(5, query_scales=(1.0,), seed=1),
        Ask(5, query_scales=(1.0, 0.01, 1.0), seed=1),
    ],
)
def test_a_request_that_asks_for_other_rows_is_packed_anew(packed: list[Packing], changed: Ask) -> None:
    attended, asked = context(3, 9), Ask(5, query_scales=(1.0, 0.01), seed=1)
    before, after = (Share(ask.share().queries, attended) for ask in (asked, changed))
    together, other = batch(), Ask(4, seed=2).share()
    together.forward([before, other])
    found = together.forward([after, other])
    assert len(packed) == 2
    assert worst(found, batch().forward([after, other])) <= 1e-5


def test_a_request_of_another_context_is_packed_anew(packed: list[Packing]) -> None:
    together, ask = batch(), Ask(5)
    shares = [Share(ask.share().queries, context(1, 9, seed)) for seed in (1, 2)]
    found = [together.forward([share])[0] for share in shares]
    assert len(packed) == 2
    assert worst(found, [batch().forward([share])[0] for share in shares]) <= 1e-5


def test_a_few_packings_are_kept_for_companies_that_take_turns(packed: list[Packing]) -> None:
    together = batch()
    shares = [Ask(frames).share() for frames in range(1, KEPT_PACKINGS + 1)]
    for share in [*shares, *shares]:
        together.forward([share])
    assert len(packed) == KEPT_PACKINGS


def test_contexts_are_let_go_with_the_packings() -> None:
    together, share = batch(), Share(Ask(5).share().queries, replace(context(1, 9)))  # no one else's context
    kept = weakref.ref(share.context)
    together.forward([share])
    del share
    assert kept() is not None
    together.forget_packings()
    assert kept() is None


def test_a_longer_song_after_a_short_one_has_its_positions() -> None:
    together = batch()
    together.forward([Ask(3).share()])
    assert worst(together.forward([Ask(60).share()]), forward([Ask(60)])) <= 1e-5
