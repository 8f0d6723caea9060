"""A checkpoint is put together of what the trainers wrote, each stage handing on to the next."""

import shutil
from pathlib import Path

import pytest
import torch

from acestep_engine.checkpoint import AUTOENCODER, COMPONENTS, NANO_PATH, VOCODER, missing_parts
from acestep_engine.model.autoencoder import build_dcae, build_vocoder
from training.nano import autoencoder, export, vocoder
from training.nano.export import MOST_BYTES, assemble
from training.nano.tokenizer import VOCABULARY
from training.nano.transformer import Model


def test_a_complete_checkpoint_is_put_together_of_the_latest_components(tmp_path: Path) -> None:
    later = tmp_path / "later"
    shutil.copytree(NANO_PATH / VOCODER, later / VOCODER)
    (later / VOCODER / "note").write_text("later")
    out = tmp_path / "out"
    size = assemble([NANO_PATH, later], out)
    assert missing_parts(out) == []
    assert (out / VOCODER / "note").read_text() == "later"
    assert size == sum(file.stat().st_size for name in COMPONENTS for file in (out / name).iterdir())


def test_components_that_were_there_are_replaced_whole(tmp_path: Path) -> None:
    stale = tmp_path / AUTOENCODER / "stale"
    stale.parent.mkdir()
    stale.write_text("")
    assemble([NANO_PATH], tmp_path)
    assert not stale.exists()


def test_a_component_that_was_not_trained_is_missed_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds {COMPONENTS[0]}"):
        assemble([tmp_path], tmp_path / "out")


def test_a_checkpoint_that_is_too_large_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="more than 1,000"):
        assemble([NANO_PATH], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_trained_fits_a_checkpoint(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = Model(VOCABULARY)
    parts = (build_dcae(autoencoder.CONFIG), build_vocoder(vocoder.CONFIG), model)
    weights = sum(parameter.numel() for part in parts for parameter in part.parameters())
    assert 2 * weights < 0.995 * MOST_BYTES  # float16, beside configs and vocabularies
