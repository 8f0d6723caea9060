"""The vocoder: published names and sizes, one frame of mel to 512 samples, the same audio in tiles as in one piece."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from acestep_engine.errors import CheckpointError
from acestep_engine.model import vocoder as module
from acestep_engine.model.loading import check_names
from acestep_engine.model.vocoder import Vocoder, VocoderConfig
from acestep_engine.model.windows import equal_windows

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG: dict[str, Any] = {
    "input_channels": 16,
    "depths": [1, 1],
    "dims": [8, 12],
    "kernel_sizes": [7],
    "upsample_rates": [4, 2],
    "upsample_kernel_sizes": [8, 4],
    "resblock_kernel_sizes": [3, 5],
    "resblock_dilation_sizes": [[1, 3], [1, 5]],
    "num_mels": 12,
    "upsample_initial_channel": 16,
    "use_template": False,
    "pre_conv_kernel_size": 5,
    "post_conv_kernel_size": 5,
    "hop_length": 8,
}


UPSAMPLINGS: list[dict[str, Any]] = [
    {},
    {"upsample_rates": [8], "upsample_kernel_sizes": [16]},
    {"upsample_rates": [2, 2, 2], "upsample_kernel_sizes": [4, 6, 2]},
    {"upsample_rates": [4, 2], "upsample_kernel_sizes": [4, 8], "resblock_dilation_sizes": [[1], [1, 3, 7]]},
]


def drawn_vocoder(config: dict[str, Any]) -> Vocoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Vocoder(VocoderConfig.from_dict(config)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def vocoder() -> Vocoder:
    return drawn_vocoder(CONFIG)


@pytest.fixture(scope="module")
def mel() -> Tensor:
    return torch.randn(2, 16, 300, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("manifest", ["manifest-tiny.json", "manifest-v1-3.5b.json"])
def test_published_tensors_fit_the_module_exactly(golden: Path, manifest: str) -> None:
    published = json.loads((golden / manifest).read_text())["music_vocoder"]
    with torch.device("meta"):
        vocoder = Vocoder(VocoderConfig.from_dict(published["config"]))

    check_names(vocoder, published["tensors"], Vocoder.unused)


def test_each_frame_becomes_a_fixed_number_of_samples_within_one(vocoder: Vocoder, mel: Tensor) -> None:
    audio = vocoder(mel)

    assert audio.shape == (2, 1, 300 * 8)
    assert audio.abs().max() <= 1
    assert audio.std() > 0


def test_channels_of_a_batch_do_not_hear_each_other(vocoder: Vocoder, mel: Tensor) -> None:
    torch.testing.assert_close(vocoder(mel)[1:], vocoder(mel[1:]))


@pytest.mark.parametrize("tile", [32, 37, 500, 2399, 2400])
@torch.no_grad()
def test_tiles_give_the_same_audio_as_one_piece(
    vocoder: Vocoder, mel: Tensor, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = vocoder(mel)
    monkeypatch.setattr(module, "CPU_TILE_VALUES", 0)
    monkeypatch.setattr(module, "MIN_TILE_SAMPLES", tile)

    torch.testing.assert_close(vocoder(mel), whole, rtol=1e-5, atol=1e-6)


def test_a_vocoder_in_training_gives_the_same_audio_and_a_gradient_for_every_weight(mel: Tensor) -> None:
    trained, used = drawn_vocoder(CONFIG).requires_grad_(True), drawn_vocoder(CONFIG)

    audio = trained(mel, 30, 60)
    audio.square().mean().backward()

    with torch.no_grad():
        torch.testing.assert_close(audio, used(mel, 30, 60), rtol=1e-5, atol=1e-6)
    assert all(weight.grad is not None and weight.grad.any() for weight in trained.parameters())


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 1), (0, 10), (10, 11), (37, 38), (50, 250), (150, 151), (299, 300), (1, 300), (0, 299)]
)
def test_a_window_is_that_part_of_the_whole_audio(vocoder: Vocoder, mel: Tensor, start: int, stop: int) -> None:
    whole = vocoder(mel)

    torch.testing.assert_close(vocoder(mel, start, stop), whole[..., start * 8 : stop * 8], rtol=1e-5, atol=1e-6)


@given(data=st.data(), frames=st.integers(1, 120), longest=st.integers(1, 120), tile=st.integers(8, 200))
@settings(max_examples=50)
def test_windows_of_any_length_join_without_a_seam(data: st.DataObject, frames: int, longest: int, tile: int) -> None:
    config = CONFIG | {
        "kernel_sizes": [data.draw(st.sampled_from([3, 7]))],
        "pre_conv_kernel_size": data.draw(st.sampled_from([1, 5, 13])),
        "post_conv_kernel_size": data.draw(st.sampled_from([1, 7])),
        **data.draw(st.sampled_from(UPSAMPLINGS)),
    }
    vocoder = drawn_vocoder(config)
    samples = vocoder.config.samples_per_frame
    mel = torch.randn(2, 16, frames, generator=torch.Generator().manual_seed(frames))
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        whole = vocoder(mel)
        patch.setattr(module, "CPU_TILE_VALUES", 0)
        patch.setattr(module, "MIN_TILE_SAMPLES", tile)
        windows = {start: vocoder(mel, start, stop) for start, stop in equal_windows(0, frames, longest)}

    for start, audio in windows.items():
        part = whole[..., start * samples : start * samples + audio.shape[-1]]
        torch.testing.assert_close(audio, part, rtol=1e-5, atol=2e-6)


def test_a_frame_is_heard_no_further_than_the_halo(vocoder: Vocoder, mel: Tensor) -> None:
    louder = mel.clone()
    louder[..., 150] += 5

    heard = (vocoder(louder) != vocoder(mel)).any(dim=0).squeeze(0).nonzero().squeeze(1) // 8  # frames

    assert 150 - vocoder.halo <= heard.min() <= 150 - 0.8 * vocoder.halo
    assert 150 + 0.8 * vocoder.halo <= heard.max() <= 150 + vocoder.halo


@pytest.mark.parametrize(("manifest", "frames"), [("manifest-tiny.json", 18 + 35), ("manifest-v1-3.5b.json", 57 + 35)])
def test_the_published_vocoders_hear_about_a_second(golden: Path, manifest: str, frames: int) -> None:
    with torch.device("meta"):
        vocoder = Vocoder(
            VocoderConfig.from_dict(json.loads((golden / manifest).read_text())["music_vocoder"]["config"])
        )

    assert vocoder.halo == frames


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_template": True}, "template"),
        ({"kernel_sizes": [7, 9]}, "parallel kernels"),
        ({"hop_length": 512}, "contradicts itself"),
        ({"num_mels": 13}, "contradicts itself"),
        ({"depths": None}, "malformed"),
        ({"kernel_sizes": []}, "malformed"),
    ],
)
def test_a_config_of_another_vocoder_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        VocoderConfig.from_dict(CONFIG | change)


def test_a_config_that_lacks_a_field_names_it() -> None:
    config = {name: value for name, value in CONFIG.items() if name != "dims"}

    with pytest.raises(CheckpointError, match="lacks 'dims'"):
        VocoderConfig.from_dict(config)
