"""The transformer that is trained is the engine's, and what is saved of it is a published checkpoint."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from acestep_engine.model.config import TransformerConfig
from acestep_engine.model.packing import pack
from acestep_engine.model.transformer import Transformer
from training.nano.trainable import initialise, make_trainable, published_weights
from training.nano.transformer import TRANSFORMER, transformer_config

TINY = replace(TRANSFORMER, num_layers=2, num_attention_heads=2, text_embedding_dim=8, lyric_encoder_layers=1)
FRAMES = 12


def fresh() -> Transformer:
    torch.manual_seed(0)
    model = Transformer(TINY)
    initialise(model)
    with torch.no_grad():  # nothing is zero, so that everything shows
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def velocity(model: Transformer) -> Tensor:
    """Of three songs, each with its own latents, prompt, lyrics and timestep: (3, 8, 16, FRAMES)."""
    draw = torch.Generator().manual_seed(1)
    latents = torch.randn(3, 8, 16, FRAMES, generator=draw)
    text = torch.randn(3, 4, TINY.text_embedding_dim, generator=draw)
    lyrics = model.encode_lyrics(torch.tensor([[5, 9], [7, 2], [1, 1]]), torch.ones(3, 2))
    hidden = model.join_context(text, torch.zeros(3, TINY.speaker_embedding_dim), lyrics)
    context = model.prepare_context(hidden, torch.ones(hidden.shape[1], dtype=torch.bool))
    table = model.rotation_table(FRAMES + 1, torch.device("cpu"))
    packing = pack([(FRAMES, context)], [[1.0] * 3], table, torch.float32)
    timesteps = torch.tensor([400.0, 30.0, 950.0])
    return torch.stack(model(latents.unbind(), model.modulate_each(timesteps), packing))


def test_what_is_saved_loads_as_a_checkpoint_and_computes_the_same(tmp_path: Path) -> None:
    model = fresh()
    make_trainable(model)
    weights = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    saved = {name: value.contiguous() for name, value in published_weights(weights, model).items()}
    save_file(saved, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(transformer_config(TINY)))
    loaded = Transformer.load(tmp_path, torch.device("cpu"), torch.float32)
    assert loaded.config == TINY
    torch.testing.assert_close(velocity(loaded), velocity(model).detach(), rtol=1e-4, atol=1e-5)


def test_a_published_checkpoint_survives_being_made_trainable() -> None:
    model = fresh()
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    make_trainable(model)
    after = published_weights(dict(model.state_dict()), model)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_every_weight_learns() -> None:
    model = fresh()
    make_trainable(model)
    velocity(model).square().sum().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())]
    # The speaker is always zero, and a bias that softmax cannot feel is none.
    assert {name.rpartition(".")[0] for name in silent} <= {
        "speaker_embedder",
        "lyric_encoder.encoders.0.self_attn.linear_k",
    }


def test_the_configuration_says_the_sizes() -> None:
    assert TransformerConfig.from_json(transformer_config(TRANSFORMER)) == TRANSFORMER
