"""The DC autoencoder's encoder in parts: the same figures as diffusers' own encoder."""

from typing import Any

import pytest
import torch
from diffusers import AutoencoderDC
from diffusers.models.autoencoders.autoencoder_dc import Encoder
from torch import Tensor

from acestep_engine.model import latent_encoder, tiles
from acestep_engine.model.latent_encoder import LatentEncoder
from tests.engine.small import DCAE, draw_weights
from tests.parity import relative_error

pytestmark = pytest.mark.usefixtures("one_thread")

RES, ATTEND = "ResBlock", "EfficientViTBlock"
VARIANTS: dict[str, dict[str, Any]] = {
    "as v1": {"encoder_layers_per_block": [2, 2, 3, 3], "encoder_qkv_multiscales": [[], [], [5], [5]]},
    "no layers at the top": {"encoder_layers_per_block": [0, 1, 2, 1]},
    "shuffled pixels": {"downsample_block_type": "pixel_unshuffle"},
    "attention twice": {
        "encoder_block_types": [RES, RES, ATTEND, ATTEND],
        "encoder_qkv_multiscales": [[], [], [3], [5, 7]],
    },
    "no attention": {"encoder_block_types": [RES, RES, RES, RES]},
}


@pytest.fixture(scope="module", params=VARIANTS)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    with torch.device("meta"):
        dcae = AutoencoderDC(**(DCAE | VARIANTS[request.param]))
    draw_weights(dcae, seed=0)
    return dcae.to(memory_format=torch.channels_last).encoder


def noise(columns: int) -> Tensor:
    image = torch.randn(1, 2, 128, columns, generator=torch.Generator().manual_seed(columns))
    return image.contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def test_a_short_image_is_encoded_exactly_as_a_whole(encoder: Encoder) -> None:
    assert torch.equal(LatentEncoder(encoder)(noise(80)), encoder(noise(80)))


@pytest.mark.parametrize("columns", [136, 400, 1000])
@torch.inference_mode()
def test_windows_of_a_long_image_give_what_the_whole_gives(
    encoder: Encoder, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latent_encoder, "WINDOW_COLUMNS", 128)
    monkeypatch.setattr(tiles, "TILE_COLUMNS", 10)

    assert relative_error(LatentEncoder(encoder)(noise(columns)), encoder(noise(columns))) < 1e-6


@torch.inference_mode()
def test_the_context_of_a_window_is_no_less_than_its_layers_see(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a context of one latent frame less, the figures are others."""
    monkeypatch.setattr(latent_encoder, "WINDOW_COLUMNS", 128)
    with torch.device("meta"):
        dcae = AutoencoderDC(**(DCAE | VARIANTS["as v1"]))
    draw_weights(dcae, seed=0)
    parts = LatentEncoder(dcae.encoder)
    expected = dcae.encoder(noise(400))
    assert relative_error(parts(noise(400)), expected) < 1e-6
    parts._halo -= 16
    assert relative_error(parts(noise(400)), expected) > 1e-6
