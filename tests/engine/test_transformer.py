import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from acestep_engine.errors import CheckpointError
from acestep_engine.model.config import TransformerConfig, unused_in_generation
from acestep_engine.model.loading import check_names
from acestep_engine.model.packing import Context
from acestep_engine.model.transformer import ERG_BLOCKS, Transformer
from tests.engine.plain import PlainTransformer
from tests.engine.small import (
    CPU,
    SMALL,
    Ask,
    folded,
    hidden_states,
    latents,
    loaded_transformer,
    packing,
    small_transformer,
)
from tests.parity import relative_error

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model() -> Transformer:
    return small_transformer()


@pytest.fixture(scope="module")
def plain() -> PlainTransformer:
    return PlainTransformer(loaded_transformer())


def encode(model: Transformer, lyric_ids: list[list[int]], lyric_mask: list[int]) -> tuple[Tensor, Tensor]:
    """Hidden states (R, C, dim) of three prompt tokens and these lyrics, and which of them are real (C,)."""
    rows = len(lyric_ids)
    mask = torch.tensor(lyric_mask)
    lyrics = model.encode_lyrics(torch.tensor(lyric_ids), mask.expand(rows, -1))
    text = torch.ones(rows, 3, SMALL.text_embedding_dim)
    hidden = model.join_context(text, torch.zeros(rows, SMALL.speaker_embedding_dim), lyrics)
    return hidden, torch.cat([torch.ones(1 + 3, dtype=torch.bool), mask.bool()])


def velocities(
    model: Transformer, song: Tensor, timestep: float, context: Context, scales: tuple[float, ...] = (1.0,)
) -> list[Tensor]:
    """Of one request with a row for each query scale."""
    packed = packing([Ask(song.shape[-1], query_scales=scales)], [context])
    modulation = model.modulate(torch.tensor(timestep))
    return model([song] * len(scales), [modulation] * len(scales), packed)


# What a checkpoint holds


def test_the_published_checkpoint_fits_strictly(golden: Path) -> None:
    spec = json.loads((golden / "manifest-v1-3.5b.json").read_text())["ace_step_transformer"]
    with torch.device("meta"):
        model = Transformer(TransformerConfig.from_json(spec["config"]))
    check_names(model, spec["tensors"], unused_in_generation)
    unread = [name for name in spec["tensors"] if unused_in_generation(name)]
    assert len(unread) == 24 * 8 + 12  # added projections of each block, two projectors of three layers


def test_a_missing_tensor_is_named(golden: Path) -> None:
    spec = json.loads((golden / "manifest-tiny.json").read_text())["ace_step_transformer"]
    with torch.device("meta"):
        model = Transformer(TransformerConfig.from_json(spec["config"]))
    del spec["tensors"]["t_block.1.bias"]
    with pytest.raises(CheckpointError, match=r"t_block\.1\.bias"):
        check_names(model, spec["tensors"], unused_in_generation)


def test_a_config_without_a_size_is_refused() -> None:
    with pytest.raises(CheckpointError, match="num_layers"):
        TransformerConfig.from_json({"patch_size": [16, 1]})


# Velocities


@settings(max_examples=40)
@given(
    frames=st.integers(1, 100),
    timestep=st.floats(0.0, 1000.0, width=32),
    scales=st.sampled_from([(1.0,), (1.0, 0.01), (1.0, 1.0, 0.3)]),
    tokens=st.integers(1, 40),
    dropped=st.sets(st.integers(1, 39), max_size=10),
    seed=st.integers(0, 2**16),
)
def test_velocities_are_those_of_the_transformer_written_down_plainly(
    model: Transformer,
    plain: PlainTransformer,
    frames: int,
    timestep: float,
    scales: tuple[float, ...],
    tokens: int,
    dropped: set[int],
    seed: int,
) -> None:
    """Folded and packed, and with the context's unreal positions left out instead of masked."""
    hidden = hidden_states(len(scales), tokens, seed)
    real = torch.tensor([token not in dropped for token in range(tokens)])
    song = latents(frames, seed)
    found = velocities(model, song, timestep, model.prepare_context(hidden, real), scales)
    for row, scale in enumerate(scales):
        assert relative_error(found[row], plain.velocity(song, timestep, hidden[row], real, scale)) <= 1e-5


def test_weakened_rows_differ_and_others_stay(model: Transformer) -> None:
    context, song = model.prepare_context(*encode(model, [[1, 2, 3]] * 2, [1, 1, 1])), latents(6)
    usual = velocities(model, song, 500.0, context, (1.0, 1.0))
    weakened = velocities(model, song, 500.0, context, (1.0, 0.01))
    torch.testing.assert_close(weakened[0], usual[0])
    assert relative_error(weakened[1], usual[1]) > 1e-3


def test_only_the_published_blocks_are_weakened() -> None:
    """Without them, a query scale changes nothing."""
    model = folded(loaded_transformer(replace(SMALL, num_layers=ERG_BLOCKS.start)))
    context, song = model.prepare_context(hidden_states(2, 5), torch.ones(5, dtype=torch.bool)), latents(6)
    usual = velocities(model, song, 500.0, context, (1.0, 1.0))
    weakened = velocities(model, song, 500.0, context, (1.0, 0.01))
    torch.testing.assert_close(weakened, usual)


def test_a_request_attends_to_the_first_rows_of_its_context(model: Transformer) -> None:
    """Outside the guided interval one row is enough."""
    real = torch.ones(7, dtype=torch.bool)
    hidden, song = hidden_states(3, 7), latents(8)
    of_three = velocities(model, song, 500.0, model.prepare_context(hidden, real))
    of_one = velocities(model, song, 500.0, model.prepare_context(hidden[:1], real))
    assert relative_error(of_three[0], of_one[0]) <= 1e-5


def test_folding_keeps_what_was_loaded_in_the_models_precision(model: Transformer) -> None:
    half = folded(loaded_transformer().bfloat16())
    context = half.prepare_context(hidden_states(1, 5).bfloat16(), torch.ones(5, dtype=torch.bool))
    table = half.rotation_table(9, CPU)
    packed = replace(packing([Ask(8)], [context]), rotation=tuple(part.unsqueeze(1) for part in table))
    modulation = half.modulate(torch.tensor(500.0))
    (velocity,) = half([latents(8)], [modulation], packed)
    assert velocity.dtype == torch.float32
    exact = velocities(model, latents(8), 500.0, model.prepare_context(hidden_states(1, 5), torch.ones(5).bool()))
    assert relative_error(velocity, exact[0]) < 0.1


# Contexts


def test_masked_lyrics_change_nothing(model: Transformer) -> None:
    song = latents(10)
    short = velocities(model, song, 500.0, model.prepare_context(*encode(model, [[1, 2, 3]], [1, 1, 1])))
    padded = velocities(model, song, 500.0, model.prepare_context(*encode(model, [[1, 2, 3, 4, 5]], [1, 1, 1, 0, 0])))
    assert relative_error(padded[0], short[0]) <= 1e-5


def test_what_is_not_real_is_left_out_of_the_context(model: Transformer) -> None:
    context = model.prepare_context(*encode(model, [[1, 2, 3, 4]], [1, 0, 1, 0]))
    assert {k.shape[2] for k, _ in context.key_values} == {1 + 3 + 2}


def test_lyrics_that_attend_in_pieces_are_read_the_same(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.tensor([list(range(20)) * 2] * 2)
    mask = torch.tensor([[1] * 40, [1] * 33 + [0] * 7])
    whole = model.encode_lyrics(ids, mask)
    monkeypatch.setattr("acestep_engine.model.lyric_encoder.QUERY_CHUNK", 7)
    torch.testing.assert_close(model.encode_lyrics(ids, mask), whole)


def test_lyrics_are_read_the_same_beside_others(model: Transformer) -> None:
    ids, mask = torch.arange(1, 19).view(3, 6), torch.ones(3, 6)
    scales = torch.tensor([1.0, 0.01, 0.5])
    together = model.encode_lyrics(ids, mask, scales)
    for row in range(3):
        one = slice(row, row + 1)
        assert relative_error(together[one], model.encode_lyrics(ids[one], mask[one], scales[one])) <= 1e-5


def test_weakened_lyrics_are_read_differently(model: Transformer) -> None:
    ids, mask = torch.tensor([[1, 2, 3]]), torch.ones(1, 3)
    assert relative_error(model.encode_lyrics(ids, mask, torch.tensor([0.01])), model.encode_lyrics(ids, mask)) > 1e-3


def test_no_lyrics_at_all_is_finite(model: Transformer) -> None:
    context = model.prepare_context(*encode(model, [[0]], [0]))
    assert bool(velocities(model, latents(4), 500.0, context)[0].isfinite().all())
