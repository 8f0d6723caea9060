"""Where the rows of many requests lie, and that what runs on all tokens does to each row what it would do alone."""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from acestep_engine.model.packing import GAP_FRAMES, Context, Packing
from tests.engine.plain import attend_across, attend_linearly, feed_forward
from tests.engine.small import CPU, SMALL, Ask, folded, hidden_states, loaded_transformer, packing, small_transformer
from tests.parity import relative_error

pytestmark = pytest.mark.usefixtures("one_thread")

MIXED = (
    Ask(1, seed=1),
    Ask(4, query_scales=(1.0, 0.01), seed=2),
    Ask(4, seed=3),
    Ask(11, query_scales=(1.0,) * 3, seed=4),
)

asks = st.builds(
    Ask,
    frames=st.integers(1, 100),
    query_scales=st.sampled_from([(1.0,), (1.0, 1.0), (1.0, 0.01), (1.0, 0.01, 1.0)]),
    context_tokens=st.integers(1, 40),
    seed=st.integers(0, 7),
)
companies = st.lists(asks, min_size=1, max_size=5)


def rows_of(asks: Sequence[Ask]) -> list[tuple[Ask, int]]:
    """Every row in order: whose, and which of theirs."""
    return [(ask, row) for ask in asks for row in range(len(ask.query_scales))]


def noise(packed: Packing, seed: int = 0) -> Tensor:
    """Tokens (N, dim), in the gaps too."""
    return torch.randn(packed.tokens, SMALL.dim, generator=torch.Generator().manual_seed(seed))


# Where everything lies


@given(companies)
def test_every_token_is_a_frame_of_one_row_or_its_gap(asks: list[Ask]) -> None:
    packed = packing(asks)
    frames = [range(start, start + frames) for start, frames in packed.row_frames()]
    assert [len(row) for row in frames] == [ask.frames for ask, _ in rows_of(asks)]
    gaps = packed.gaps.tolist()
    assert gaps == [row.stop for row in frames]
    assert sorted([token for row in frames for token in row] + gaps) == list(range(packed.tokens))
    for index, row in enumerate(frames):
        assert packed.row_of_token[row.start : row.stop + GAP_FRAMES].tolist() == [index] * (len(row) + GAP_FRAMES)


@given(companies)
def test_spans_cover_all_rows_and_neighbours_differ_in_width(asks: list[Ask]) -> None:
    packed = packing(asks)
    assert [span.start for span in packed.spans] == [0, *(span.stop for span in packed.spans[:-1])]
    assert packed.spans[-1].stop == packed.tokens
    assert all(before.width != after.width for before, after in pairwise(packed.spans))
    assert sum(span.rows for span in packed.spans) == len(rows_of(asks))


def test_requests_of_equal_length_share_a_span() -> None:
    assert [(span.rows, span.width) for span in packing(MIXED).spans] == [(1, 2), (3, 5), (3, 12)]


@given(companies)
def test_every_row_has_the_positions_and_the_query_scale_it_would_have_alone(asks: list[Ask]) -> None:
    packed = packing(asks)
    for (start, frames), (ask, row) in zip(packed.row_frames(), rows_of(asks), strict=True):
        for together, alone in zip(packed.rotation, packing([Ask(ask.frames)]).rotation, strict=True):
            torch.testing.assert_close(together[start : start + frames], alone[:frames], rtol=0, atol=0)
        if packed.query_scale is not None:
            assert (packed.query_scale[start : start + frames] == torch.tensor(ask.query_scales[row])).all()


def test_where_nobody_is_weakened_there_are_no_scales() -> None:
    assert packing([Ask(3), Ask(5)]).query_scale is None
    assert packing([Ask(3), Ask(5, query_scales=(1.0, 0.01))]).query_scale is not None


# What runs on all tokens at once


@cache
def parts(name: str) -> tuple[nn.Module, nn.Module]:
    """A part of a block, folded, and as the checkpoint has it in double precision."""
    loaded = getattr(loaded_transformer().transformer_blocks[0], name)
    return folded(loaded), loaded.double()


@settings(max_examples=50)
@given(companies)
def test_linear_attention_is_that_of_each_row_alone(asks: list[Ask]) -> None:
    attention, plain = parts("attn")
    packed = packing(asks)
    x = noise(packed)
    found = attention.to_out[0](attention.attend(*attention.project(x, packed.rotation), packed, x.dtype))
    for start, frames in packed.row_frames():
        row = slice(start, start + frames)
        assert relative_error(found[row], attend_linearly(plain, x[row].double())) <= 1e-5


@settings(max_examples=50)
@given(companies)
def test_cross_attention_is_that_of_each_row_to_its_own_context(asks: list[Ask]) -> None:
    check_cross_attention(asks)


def test_cross_attention_over_long_contexts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores over the limit are computed by the fused kernel."""
    monkeypatch.setattr("acestep_engine.model.attention.MAX_SCORES", 0)
    check_cross_attention(MIXED)


def check_cross_attention(asks: Sequence[Ask]) -> None:
    attention, plain = parts("cross_attn")
    hidden = [hidden_states(len(ask.query_scales), ask.context_tokens, ask.seed) for ask in asks]
    cos, sin = small_transformer().rotation_table(max(ask.context_tokens for ask in asks), CPU)
    rotations = [(cos[: ask.context_tokens, None], sin[: ask.context_tokens, None]) for ask in asks]
    key_values = [attention.project_context(*one) for one in zip(hidden, rotations, strict=True)]
    packed = packing(asks, [Context((key_value,)) for key_value in key_values])
    x = noise(packed)
    q = attention.project(x, packed.rotation, packed.query_scale)
    found = attention.to_out[0](attention.attend(q, packed, block=0))
    hidden_rows = [row.double() for of_one in hidden for row in of_one]
    scales = [scale for ask in asks for scale in ask.query_scales]
    for (start, frames), attended, scale in zip(packed.row_frames(), hidden_rows, scales, strict=True):
        row = slice(start, start + frames)
        real = torch.ones(len(attended), dtype=torch.bool)
        assert relative_error(found[row], attend_across(plain, x[row].double(), attended, real, scale)) <= 1e-5


@settings(max_examples=50)
@given(companies)
def test_the_feed_forward_convolves_each_row_alone(asks: list[Ask]) -> None:
    part, plain = parts("ff")
    packed = packing(asks)
    x = noise(packed)
    found = part(x.clone(), packed.gaps)
    for start, frames in packed.row_frames():
        row = slice(start, start + frames)
        assert relative_error(found[row], feed_forward(plain, x[row].double())) <= 1e-5


@pytest.mark.parametrize("broken", range(len(rows_of(MIXED))))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_in_its_row(broken: int, value: float) -> None:
    """Also what a convolution of a broken neighbour left in a gap."""
    block, packed = small_transformer().transformer_blocks[0], packing(MIXED, [ask.context() for ask in MIXED])
    modulation = torch.ones(1, 6, SMALL.dim)
    x = noise(packed)
    whole = block(block(x.clone(), modulation, packed, 0), modulation, packed, 0)
    rows = list(packed.row_frames())
    start, frames = rows[broken]
    x[start : start + frames] = value
    found = block(block(x, modulation, packed, 0), modulation, packed, 0)
    assert not found[start : start + frames].isfinite().any()
    for row, (start, frames) in enumerate(rows):
        if row != broken:
            torch.testing.assert_close(found[start : start + frames], whole[start : start + frames], rtol=0, atol=0)
