"""Which model is served."""

import dataclasses
from pathlib import Path

import pytest

from acestep_engine.checkpoint import COMPONENTS, LYRIC_VOCABULARY, NANO_PATH
from deployments.messages import ModelUnavailableError
from deployments.models import PUBLISHED_FOLDER, ModelChoice, resolve_models


def make_checkpoint(folder: Path) -> Path:
    for component in COMPONENTS:
        (folder / component).mkdir(parents=True)
        (folder / component / "config.json").write_text("{}")
        (folder / component / "model.safetensors").touch()
    (folder / LYRIC_VOCABULARY).write_text("{}")
    return folder


@pytest.fixture
def choice(tmp_path: Path) -> ModelChoice:
    return ModelChoice("auto", {}, tmp_path / "kept", download=False)


def test_auto_is_nano_where_nothing_was_downloaded(choice: ModelChoice) -> None:
    models = resolve_models(choice, cluster_has_gpu=True)
    assert (models.first.name, models.first.path) == ("nano", str(NANO_PATH))


def test_auto_is_the_published_model_where_there_is_a_gpu_and_it_was_downloaded(choice: ModelChoice) -> None:
    folder = make_checkpoint(choice.checkpoint_dir / PUBLISHED_FOLDER)
    assert resolve_models(choice, cluster_has_gpu=False).first.name == "nano"
    models = resolve_models(choice, cluster_has_gpu=True)
    assert (models.first.name, models.first.path) == ("v1-3.5b", str(folder))


def test_auto_is_the_published_model_where_it_may_be_downloaded(choice: ModelChoice) -> None:
    models = resolve_models(dataclasses.replace(choice, download=True), cluster_has_gpu=True)
    assert models.first.name == "v1-3.5b"
    assert models.downloadable(models.first)
    assert not models.downloadable(models.named["nano"])


def test_the_checkpoint_folder_itself_may_be_the_published_model(choice: ModelChoice) -> None:
    make_checkpoint(choice.checkpoint_dir)
    assert resolve_models(choice, cluster_has_gpu=True).first.path == str(choice.checkpoint_dir)


def test_auto_prefers_the_first_configured_checkpoint_even_without_a_gpu(choice: ModelChoice, tmp_path: Path) -> None:
    folders = {name: str(make_checkpoint(tmp_path / name)) for name in ("mine", "other")}
    models = resolve_models(dataclasses.replace(choice, checkpoints=folders), cluster_has_gpu=False)
    assert models.first.name == "mine"
    assert set(models.named) == {"mine", "other", "nano", "auto"}


def test_the_published_model_that_is_not_there_is_refused_with_advice(choice: ModelChoice) -> None:
    with pytest.raises(ModelUnavailableError, match="acestep-serve download"):
        resolve_models(dataclasses.replace(choice, model="v1-3.5b"), cluster_has_gpu=True)


def test_a_folder_may_be_asked_for(choice: ModelChoice, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "song-model")
    models = resolve_models(dataclasses.replace(choice, model=str(folder)), cluster_has_gpu=False)
    assert (models.first.name, models.first.path) == ("song-model", str(folder))


def test_an_incomplete_folder_is_refused_by_what_it_lacks(choice: ModelChoice, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "song-model")
    (folder / LYRIC_VOCABULARY).unlink()
    with pytest.raises(ModelUnavailableError, match=LYRIC_VOCABULARY):
        resolve_models(dataclasses.replace(choice, model=str(folder)), cluster_has_gpu=False)


def test_an_unknown_name_is_refused_with_those_there_are(choice: ModelChoice) -> None:
    with pytest.raises(
        ModelUnavailableError, match=r"no model is called 'nanno', and it is no folder; there are .*nano"
    ):
        resolve_models(dataclasses.replace(choice, model="nanno"), cluster_has_gpu=False)


def test_a_configured_checkpoint_that_is_missing_is_refused_when_it_is_chosen(choice: ModelChoice) -> None:
    with pytest.raises(ModelUnavailableError, match="there is no checkpoint folder /nowhere"):
        resolve_models(dataclasses.replace(choice, checkpoints={"mine": "/nowhere"}), cluster_has_gpu=False)


def test_the_switches_reach_the_model(choice: ModelChoice) -> None:
    asked = dataclasses.replace(choice, bf16=False, cpu_offload=True, overlapped_decode=True, torch_compile=False)
    spec = resolve_models(asked, cluster_has_gpu=False).first
    assert (spec.precision, spec.cpu_offload, spec.overlapped_decode, spec.torch_compile) == (
        *("float32", True, True, False),
    )


def test_a_model_is_chosen_by_name_and_keeps_how_it_runs(choice: ModelChoice, tmp_path: Path) -> None:
    folders = {"mine": str(make_checkpoint(tmp_path / "mine"))}
    models = resolve_models(dataclasses.replace(choice, checkpoints=folders, cpu_offload=True), cluster_has_gpu=False)
    chosen = models.choose("nano", {"bf16": True, "torch_compile": None}, models.first)
    assert (chosen.name, chosen.precision, chosen.cpu_offload) == ("nano", "auto", True)
    assert models.choose(None, {"cpu_offload": False}, chosen) == dataclasses.replace(chosen, cpu_offload=False)


def test_a_model_that_is_not_configured_cannot_be_chosen(choice: ModelChoice) -> None:
    models = resolve_models(choice, cluster_has_gpu=False)
    with pytest.raises(ModelUnavailableError, match=r"no model is called '/etc'; there are nano, auto"):
        models.choose("/etc", {}, models.first)
