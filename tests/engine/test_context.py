"""What a request attends to, and what is not computed again for the next one."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from acestep_engine.conditioning import Conditioning
from acestep_engine.context import ERG_LYRIC_QUERY_SCALE, KEPT_LYRICS, ContextBuilder
from acestep_engine.model.packing import Context
from acestep_engine.params import GenerationParams
from tests.engine.small import CPU, SMALL, conditioning, small_transformer
from tests.parity import relative_error

pytestmark = pytest.mark.usefixtures("one_thread")

PARAMS = GenerationParams("funk", "la la", 1.0, seed=1)
WEAK = replace(PARAMS, use_erg_lyric=True)
DOUBLE = {"guidance_scale_text": 5.0, "guidance_scale_lyric": 1.5}


def builder() -> ContextBuilder:
    return ContextBuilder(small_transformer(), CPU, torch.float32)


def build(params: GenerationParams, conditioning: Conditioning) -> Context:
    return builder().build(params, conditioning)


@dataclass(frozen=True)
class Row:
    """What one row of a context is made of."""

    text: np.ndarray[Any, np.dtype[np.float32]] | None
    lyrics: bool
    lyric_scale: float = 1.0


def expected(conditioning: Conditioning, *rows: Row) -> Context:
    """Encoded together, without any cache."""
    model, count = small_transformer(), len(rows)
    ids, mask = torch.tensor(conditioning.lyric_ids), torch.tensor(conditioning.lyric_mask)
    text = torch.tensor(conditioning.text)
    hidden = model.join_context(
        torch.stack([torch.zeros_like(text) if row.text is None else torch.tensor(row.text) for row in rows]),
        torch.zeros(count, SMALL.speaker_embedding_dim),
        model.encode_lyrics(
            torch.stack([ids if row.lyrics else torch.zeros_like(ids) for row in rows]),
            mask.expand(count, -1),
            torch.tensor([row.lyric_scale for row in rows]),
        ),
    )
    return model.prepare_context(hidden, torch.cat([torch.ones(1 + len(text)), mask]).bool())


def assert_equal(found: Context, expected: Context) -> None:
    for of_found, of_expected in zip(found.key_values, expected.key_values, strict=True):
        for part, same in zip(of_found, of_expected, strict=True):
            assert relative_error(part, same) <= 1e-5


@contextmanager
def encoded_lyrics() -> Iterator[list[Tensor]]:
    """What the lyric encoder answers meanwhile, call by call."""
    calls: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        calls.append(output)

    hook = small_transformer().lyric_encoder.register_forward_hook(note)
    try:
        yield calls
    finally:
        hook.remove()


# What the rows are


@pytest.mark.parametrize("padded", [0, 3, 7])
def test_without_guidance_there_is_the_conditioned_row_only(padded: int) -> None:
    given = conditioning(padded=padded)
    assert_equal(build(replace(PARAMS, guidance_scale=1.0), given), expected(given, Row(given.text, lyrics=True)))


@pytest.mark.parametrize("padded", [0, 3, 7])
def test_a_guided_request_is_led_away_from_nothing_at_all(padded: int) -> None:
    given = conditioning(padded=padded)
    assert_equal(build(PARAMS, given), expected(given, Row(given.text, lyrics=True), Row(None, lyrics=False)))


def test_with_erg_it_is_led_away_from_the_same_weakly_attended_to() -> None:
    given = conditioning(padded=2)
    weak = Row(given.text_weakened, lyrics=True, lyric_scale=ERG_LYRIC_QUERY_SCALE)
    assert_equal(build(WEAK, given), expected(given, Row(given.text, lyrics=True), weak))


def test_weakened_states_that_are_not_there_are_nothing() -> None:
    given = replace(conditioning(), text_weakened=None)
    weak = Row(None, lyrics=True, lyric_scale=ERG_LYRIC_QUERY_SCALE)
    assert_equal(build(WEAK, given), expected(given, Row(given.text, lyrics=True), weak))


def test_weakened_states_are_not_used_without_weakened_lyrics() -> None:
    given = conditioning()
    assert_equal(build(PARAMS, given), build(PARAMS, replace(given, text_weakened=None)))


def test_double_guidance_has_the_prompt_without_lyrics_as_well() -> None:
    given = conditioning()
    rows = Row(given.text, lyrics=True), Row(None, lyrics=False), Row(given.text, lyrics=False)
    assert_equal(build(replace(PARAMS, **DOUBLE), given), expected(given, *rows))


def test_double_guidance_with_erg_weakens_the_lyrics_of_both() -> None:
    given = conditioning()
    weak = Row(given.text_weakened, lyrics=True, lyric_scale=ERG_LYRIC_QUERY_SCALE)
    rows = Row(given.text, lyrics=True), weak, replace(weak, text=given.text)
    assert_equal(build(replace(WEAK, **DOUBLE), given), expected(given, *rows))


# Nothing twice


def test_a_repeated_prompt_with_another_seed_encodes_nothing() -> None:
    contexts, given = builder(), conditioning()
    with encoded_lyrics() as calls:
        first = contexts.build(PARAMS, given)
        assert len(calls) == 2  # with and without lyrics
        again = contexts.build(replace(PARAMS, seed=2, steps=27, duration_s=3.0), conditioning())
        assert again is first
        del first, again
        assert_equal(contexts.build(PARAMS, given), build(PARAMS, conditioning()))
        assert len(calls) == 4  # the last two are of the fresh builder


def test_a_context_lives_only_as_long_as_somebody_needs_it() -> None:
    contexts = builder()
    context = contexts.build(PARAMS, conditioning())
    alive = weakref.ref(context)
    del context
    assert alive() is None


@pytest.mark.parametrize(
    "change",
    [
        {"use_erg_lyric": True},
        {"guidance_scale": 1.0},
        DOUBLE,
        {"use_erg_lyric": True, "guidance_scale": 1.0},
        {"use_erg_lyric": True, **DOUBLE},
    ],
)
def test_another_way_of_guidance_is_another_context(change: dict[str, Any]) -> None:
    contexts, given = builder(), conditioning()
    usual = contexts.build(PARAMS, given)
    changed = contexts.build(replace(PARAMS, **change), given)
    assert changed is not usual
    assert_equal(changed, build(replace(PARAMS, **change), given))


@pytest.mark.parametrize(
    "change", [{"use_erg_diffusion": False}, {"use_erg_tag": False}, {"guidance_scale": 3.0}, {"cfg_type": "cfg"}]
)
def test_what_changes_only_the_forwards_shares_the_context(change: dict[str, Any]) -> None:
    contexts, given = builder(), conditioning()
    usual = contexts.build(PARAMS, given)
    assert contexts.build(replace(PARAMS, **change), given) is usual


@pytest.mark.parametrize(
    "other",
    [
        conditioning(seed=1),
        conditioning(padded=1),
        conditioning(text_tokens=6),
        conditioning(lyric_tokens=8),
        replace(conditioning(), text=conditioning(seed=1).text),
        replace(conditioning(), text_weakened=conditioning(seed=1).text_weakened),
        replace(conditioning(), text_weakened=None),
        replace(conditioning(), lyric_ids=conditioning(seed=1).lyric_ids),
    ],
)
def test_another_prompt_or_other_lyrics_are_another_context(other: Conditioning) -> None:
    contexts = builder()
    usual = contexts.build(WEAK, conditioning())
    changed = contexts.build(WEAK, other)
    assert changed is not usual
    assert_equal(changed, build(WEAK, other))


def test_lyrics_are_encoded_once_for_all_prompts() -> None:
    contexts, given = builder(), conditioning()
    contexts.build(PARAMS, given)
    with encoded_lyrics() as calls:
        other = contexts.build(PARAMS, replace(given, text=conditioning(seed=1).text))
        assert calls == []
        contexts.build(WEAK, given)
        assert [len(output) for output in calls] == [1]  # the weakened ones alone
    assert_equal(other, build(PARAMS, replace(given, text=conditioning(seed=1).text)))


def test_rows_of_the_same_lyrics_are_encoded_once() -> None:
    with encoded_lyrics() as calls:
        build(replace(PARAMS, **DOUBLE), conditioning())
    assert [len(output) for output in calls] == [1, 1]  # with and without lyrics


def test_encoded_lyrics_do_not_depend_on_what_was_known_before() -> None:
    """To the bit: the weakened row is encoded alone after an unweakened song, and beside another one before it."""
    before, given = builder(), conditioning()
    usual = before.build(PARAMS, given)
    for (k, v), (other_k, other_v) in zip(
        before.build(WEAK, given).key_values, builder().build(WEAK, given).key_values, strict=True
    ):
        assert torch.equal(k, other_k)
        assert torch.equal(v, other_v)
    assert usual is not None


def test_only_lyrics_used_lately_are_kept() -> None:
    contexts, unguided = builder(), replace(PARAMS, guidance_scale=1.0)
    with encoded_lyrics() as calls:
        for seed in [*range(KEPT_LYRICS + 1), KEPT_LYRICS, 0]:
            contexts.build(unguided, conditioning(seed))
    assert len(calls) == KEPT_LYRICS + 2
