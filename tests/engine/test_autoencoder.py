"""Audio to latents and back, equal to the published figures."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from acestep_engine.errors import AudioError, CheckpointError, CheckpointNotFoundError
from acestep_engine.model.autoencoder import MusicAutoencoder, build_dcae, build_vocoder
from acestep_engine.model.loading import check_names

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def autoencoder(tiny_checkpoint: Path) -> MusicAutoencoder:
    return MusicAutoencoder.load(tiny_checkpoint, CPU, torch.float32)


@pytest.fixture(scope="module")
def figures(golden: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = load_file(golden / "cases" / "autoencoder.safetensors")
    return tensors


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The two folders that the autoencoder is loaded from, to break."""
    for name in ("music_dcae_f8c8", "music_vocoder"):
        shutil.copytree(tiny_checkpoint / name, tmp_path / name)
    return tmp_path


def latents_to_mel(autoencoder: MusicAutoencoder, latents: Tensor) -> Tensor:
    """In one piece."""
    image = autoencoder.latents_to_image(latents)
    for step in range(autoencoder.decoder.attending_steps):
        image = autoencoder.decoder.attend(step, image)
    return autoencoder.attended_to_mel(image, 0, latents.shape[-1])


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(("rate_hz", "name"), [(48_000, "48"), (22_050, "22")])
def test_encoding_equals_the_published_figure(
    autoencoder: MusicAutoencoder, figures: dict[str, Tensor], rate_hz: int, name: str
) -> None:
    found, expected = autoencoder.encode(figures[f"audio{name}"][0], rate_hz), figures[f"latents{name}"][0]

    assert found.shape == expected.shape
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_audio_is_padded_only_up_to_a_whole_latent_frame(autoencoder: MusicAutoencoder) -> None:
    for samples, frames in ((1, 1), (4096, 1), (4097, 2), (8192, 2)):
        assert autoencoder.encode(torch.zeros(2, samples), 44_100).shape == (8, 16, frames)


@pytest.mark.parametrize("shape", [(2, 0), (1, 4096), (4096,), (1, 2, 4096)])
def test_what_is_no_stereo_audio_is_refused(autoencoder: MusicAutoencoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(AudioError, match=r"expected \(2, N\)"):
        autoencoder.encode(torch.zeros(shape), 44_100)


def test_latents_become_the_mel_of_both_channels_and_that_becomes_audio(autoencoder: MusicAutoencoder) -> None:
    latents = torch.randn(8, 16, 3, generator=torch.Generator().manual_seed(0))

    mel = latents_to_mel(autoencoder, latents)
    audio = autoencoder.mel_to_audio(mel)

    assert mel.shape == (2, 128, 24)
    assert audio.shape == (2, 24 * 512)
    assert audio.dtype == mel.dtype == torch.float32


def test_bfloat16_weights_take_and_give_float32(tiny_checkpoint: Path, autoencoder: MusicAutoencoder) -> None:
    half = MusicAutoencoder.load(tiny_checkpoint, CPU, torch.bfloat16)
    audio = 0.1 * torch.randn(2, 8192, generator=torch.Generator().manual_seed(0))

    found, expected = half.encode(audio, 44_100), autoencoder.encode(audio, 44_100)

    assert found.dtype == torch.float32
    assert (found - expected).norm() <= 0.05 * expected.norm()
    assert half.mel_to_audio(latents_to_mel(half, found)).dtype == torch.float32


@pytest.mark.parametrize("manifest", ["manifest-tiny.json", "manifest-v1-3.5b.json"])
def test_published_tensors_fit_the_autoencoder_exactly(golden: Path, manifest: str) -> None:
    published = json.loads((golden / manifest).read_text())["music_dcae_f8c8"]

    check_names(build_dcae(published["config"]), published["tensors"])


def test_a_tensor_that_is_missing_from_the_vocoder_is_named(checkpoint: Path) -> None:
    file = checkpoint / "music_vocoder" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["head.conv_post.bias"]
    save_file(tensors, file)

    with pytest.raises(CheckpointError, match=r"head\.conv_post\.bias \(1,\) is missing from music_vocoder/"):
        MusicAutoencoder.load(checkpoint, CPU, torch.float32)


def test_a_missing_component_is_not_found(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint / "music_dcae_f8c8")

    with pytest.raises(CheckpointNotFoundError, match=r"music_dcae_f8c8/config\.json"):
        MusicAutoencoder.load(checkpoint, CPU, torch.float32)


@pytest.mark.parametrize(
    ("component", "change", "message"),
    [
        ("music_dcae_f8c8", {"latent_channels": 4}, "4 latent channels"),
        ("music_dcae_f8c8", {"encoder_block_types": "Transformer"}, "describes no AutoencoderDC"),
        ("music_dcae_f8c8", {"colour": "blue"}, "describes no AutoencoderDC"),
        ("music_vocoder", {"sampling_rate": 24_000}, "24000 Hz"),
    ],
)
def test_a_model_of_another_kind_is_refused(
    checkpoint: Path, component: str, change: dict[str, Any], message: str
) -> None:
    edit_config(checkpoint / component, **change)

    with pytest.raises(CheckpointError, match=message):
        MusicAutoencoder.load(checkpoint, CPU, torch.float32)


def test_a_vocoder_of_impossible_sizes_is_refused(golden: Path) -> None:
    config = json.loads((golden / "manifest-tiny.json").read_text())["music_vocoder"]["config"]

    with pytest.raises(CheckpointError, match="describes no vocoder"):
        build_vocoder(config | {"depths": [1]})
