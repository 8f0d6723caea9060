import json
from pathlib import Path

import pytest
import torch

from acestep_engine.errors import CheckpointError
from acestep_engine.model.loading import check_names
from acestep_engine.model.transformer import Transformer, TransformerConfig, unused_in_generation

SMALL = TransformerConfig(
    num_layers=17,  # past the first block that guidance weakens
    num_attention_heads=2,
    attention_head_dim=8,
    mlp_ratio=2.5,
    text_embedding_dim=12,
    lyric_encoder_vocab_size=20,
    lyric_hidden_size=16,
    lyric_encoder_heads=2,
    lyric_encoder_ff_dim=32,
)


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(0)
    model = Transformer(SMALL).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.3)
    return model


def encode(
    model: Transformer, lyric_ids: list[list[int]], lyric_mask: list[list[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = len(lyric_ids)
    text = torch.ones(rows, 3, SMALL.text_embedding_dim)
    speaker = torch.zeros(rows, SMALL.speaker_embedding_dim)
    return model.encode_context(
        text, torch.ones(rows, 3, dtype=torch.long), speaker, torch.tensor(lyric_ids), torch.tensor(lyric_mask)
    )


def latents(rows: int, frames: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 8, 16, frames, generator=torch.Generator().manual_seed(seed))


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


def test_padding_changes_nothing(model: Transformer) -> None:
    context = model.prepare_context(*encode(model, [[1, 2, 3]], [[1, 1, 1]]))
    timestep = torch.tensor([500.0])
    song = latents(1, 10)
    padded = torch.cat([song, latents(1, 7, seed=1)], dim=-1)
    mask = torch.arange(17)[None] < 10
    alone = model(song, timestep, context)
    together = model(padded, timestep, context, mask=mask)[..., :10]
    assert ((together - alone).norm() / alone.norm()).item() < 1e-5


def test_masked_lyrics_change_nothing(model: Transformer) -> None:
    timestep, song = torch.tensor([500.0]), latents(1, 10)
    short = model(song, timestep, model.prepare_context(*encode(model, [[1, 2, 3]], [[1, 1, 1]])))
    padded = model(song, timestep, model.prepare_context(*encode(model, [[1, 2, 3, 4, 5]], [[1, 1, 1, 0, 0]])))
    assert ((padded - short).norm() / short.norm()).item() < 1e-5


def test_lyrics_that_attend_in_pieces_are_read_the_same(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [list(range(20)) * 2] * 2
    mask = [[1] * 40, [1] * 33 + [0] * 7]
    whole, _ = encode(model, ids, mask)
    monkeypatch.setattr("acestep_engine.model.lyric_encoder.QUERY_CHUNK", 7)
    torch.testing.assert_close(encode(model, ids, mask)[0], whole)


def test_no_lyrics_at_all_is_finite(model: Transformer) -> None:
    context = model.prepare_context(*encode(model, [[0]], [[0]]))
    assert bool(model(latents(1, 4), torch.tensor([500.0]), context).isfinite().all())


def test_rows_do_not_hear_each_other(model: Transformer) -> None:
    context = model.prepare_context(*encode(model, [[1, 2, 3], [4, 5, 6]], [[1, 1, 1], [1, 1, 1]]))
    both = model(latents(2, 6), torch.tensor([500.0, 20.0]), context)
    first = model(latents(2, 6)[:1], torch.tensor([500.0]), context.first_rows(1))
    assert ((both[:1] - first).norm() / first.norm()).item() < 1e-5


def test_weakened_rows_differ_and_others_stay(model: Transformer) -> None:
    context = model.prepare_context(*encode(model, [[1, 2, 3]] * 2, [[1, 1, 1]] * 2))
    song, timesteps = latents(1, 6).expand(2, -1, -1, -1), torch.tensor([500.0, 500.0])
    plain = model(song, timesteps, context)
    weakened = model(song, timesteps, context, query_scale=torch.tensor([1.0, 0.01]))
    torch.testing.assert_close(weakened[0], plain[0])
    assert not torch.allclose(weakened[1], plain[1])
