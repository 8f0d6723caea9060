"""Latents on disk belong to one autoencoder, and what is there is not made again."""

from pathlib import Path

import pytest

from tests.training.codec import SMALL_DCAE
from training.nano.autoencoder import CONFIG, started_dcae
from training.nano.latents import SHARD_PIECES, LatentClips, Shard, make_latents, stay_with
from training.nano.modules import store

SECONDS = 1.0


def autoencoder(folder: Path, seed: int) -> Path:
    store(started_dcae(SMALL_DCAE, seed), CONFIG | SMALL_DCAE, folder / "music_dcae_f8c8")
    return folder


def shard(folder: Path, first: int = 0) -> Shard:
    return Shard(first, SECONDS, folder)


def test_a_shard_holds_latents_captions_and_chords_and_is_made_once(tmp_path: Path) -> None:
    codec, data = autoencoder(tmp_path / "codec", 1), tmp_path / "data"
    make_latents(codec, [shard(data)])
    made_at = shard(data).latents.stat().st_mtime_ns
    make_latents(codec, [shard(data)])
    clips = LatentClips(data)
    assert shard(data).latents.stat().st_mtime_ns == made_at
    assert clips.latents(0).shape[:2] == (8, 16)
    assert all(clips.captions(index) for index in range(len(clips)))


def test_latents_of_another_autoencoder_are_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    make_latents(autoencoder(tmp_path / "codec", 1), [shard(data)])
    other = autoencoder(tmp_path / "codec", 2)  # trained on, in the same folder
    with pytest.raises(SystemExit, match="comes from another autoencoder"):
        make_latents(other, [shard(data), shard(data, first=SHARD_PIECES)])


def test_a_model_stays_with_the_autoencoder_of_its_latents(tmp_path: Path) -> None:
    data = tmp_path / "data"
    make_latents(autoencoder(tmp_path / "codec", 1), [shard(data)])
    stay_with(LatentClips(data).autoencoder, tmp_path / "model")
    stay_with(LatentClips(data).autoencoder, tmp_path / "model")
    with pytest.raises(SystemExit, match="model comes from another autoencoder"):
        stay_with("of another one", tmp_path / "model")
