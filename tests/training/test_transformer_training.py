"""Steps of the transformer's training: alone, gone on with, and in a team of processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedTokenizerBase

from tests.training.captions import tokenizer_of
from training.nano.latents import LatentClips
from training.nano.numbers import order_numbers
from training.nano.rows import RowSource
from training.nano.stages import TORCHRUN
from training.nano.team import Team
from training.nano.transformer import TransformerTrainer

ROOT = Path(__file__).parents[2]
BPM = (70, 100, 102, 108, 140)
CAPTIONS = [[f"piano, {bpm} bpm"] for bpm in BPM]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return tokenizer_of(CAPTIONS, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> RowSource:
    folder = tmp_path_factory.mktemp("latents")
    noise = np.random.default_rng(0).standard_normal((len(CAPTIONS), 8, 16, 216))
    np.save(folder / "0.npy", noise.astype(np.float16))
    notes = [
        {"bpm": bpm, "chords": 16 * [[0, 4, 7]], "captions": texts} for bpm, texts in zip(BPM, CAPTIONS, strict=True)
    ]
    (folder / "0.json").write_text(json.dumps(notes))
    return RowSource(LatentClips(folder), tokenizer, tokens_per_step=216)


def trained(trainer: TransformerTrainer, steps: range) -> TransformerTrainer:
    for step in steps:
        trainer.step(step, 0.0)
    return trainer


def test_training_that_is_gone_on_with_ends_with_the_same_weights(
    rows: RowSource, tokenizer: PreTrainedTokenizerBase
) -> None:
    whole, part, resumed = (TransformerTrainer(tokenizer, rows, rows) for _ in range(3))
    before = {name: value.clone() for name, value in whole.state_dict()["model"].items()}

    trained(whole, range(3))
    resumed.load_state_dict(trained(part, range(2)).state_dict())
    trained(resumed, range(2, 3))

    weights = {kind: resumed.state_dict()[kind] for kind in ("model", "average")}
    for kind, found in weights.items():
        assert all(torch.equal(found[name], value) for name, value in whole.state_dict()[kind].items())
    matrices = [name for name in before if ".transformer_blocks." in name and name.endswith(".weight")]
    assert len(matrices) == 56
    assert not any(torch.equal(weights["model"][name], before[name]) for name in matrices)


def test_members_of_a_team_draw_rows_of_their_own(rows: RowSource, tokenizer: PreTrainedTokenizerBase) -> None:
    losses = [
        TransformerTrainer(tokenizer, rows, rows, team).step(0, 0.0)["velocity"]
        for team in (Team(), Team(0, 1), Silent(1, 2))
    ]
    assert losses[0] == losses[1] != losses[2]


class Silent(Team):
    """A member whose others are not there."""

    def average_gradients(self, parameters: object) -> None:
        pass


def test_a_team_averages_its_gradients_and_follows_its_first_member(tmp_path: Path) -> None:
    script = ROOT / "tests/training/team_member.py"
    command = [sys.executable, "-m", *TORCHRUN, "--nproc-per-node", "2", str(script), str(tmp_path)]
    subprocess.run(command, check=True, timeout=120, env=os.environ | {"PYTHONPATH": str(ROOT)})

    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["draws"] == [0, 2, 4]
    assert second["draws"] == [1, 3, 5]
    assert first["gradients"] == second["gradients"] == [[[1.5] * 3] * 2, [[2.0] * 3] * 2]
    assert first["followed"] == second["followed"] == 0.25


def test_tempos_near_each_other_begin_alike_and_other_words_as_they_were(tokenizer: PreTrainedTokenizerBase) -> None:
    embedding = nn.Embedding(len(tokenizer), 64)
    before = embedding.weight.detach().clone()

    order_numbers(embedding, tokenizer)

    @torch.no_grad()
    def alike(one: int, other: int) -> float:
        vectors = [embedding.weight[tokenizer(str(bpm)).input_ids[0]] for bpm in (one, other)]
        return float(F.cosine_similarity(vectors[0], vectors[1], dim=0))

    assert alike(100, 102) > 0.999  # played alike
    assert 0.4 < alike(100, 108) < 0.8  # the next tempo
    assert abs(alike(70, 140)) < 0.5
    assert embedding.weight.std().item() == pytest.approx(1.0, abs=0.1)
    piano, bpm, end = tokenizer("piano bpm").input_ids
    for token in (piano, bpm, end):
        assert torch.equal(embedding.weight[token], before[token])
