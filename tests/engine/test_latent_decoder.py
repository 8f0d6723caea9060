"""The DC autoencoder's decoder in parts: the same figures as diffusers' own decoder."""

from typing import Any

import pytest
import torch
from diffusers import AutoencoderDC
from diffusers.models.autoencoders.autoencoder_dc import Decoder
from torch import Tensor

from acestep_engine.model import tiles as module
from acestep_engine.model.latent_decoder import LatentDecoder
from tests.engine.small import DCAE, draw_weights
from tests.parity import relative_error

pytestmark = pytest.mark.usefixtures("one_thread")

RES, ATTEND = "ResBlock", "EfficientViTBlock"
VARIANTS: dict[str, dict[str, Any]] = {
    "as v1": {"decoder_layers_per_block": [3, 3, 3, 3], "decoder_qkv_multiscales": [[], [], [5], [5]]},
    "no shortcut": {"decoder_in_shortcut": False},
    "shuffled pixels": {"upsample_block_type": "pixel_shuffle"},
    "no layers at the top": {"decoder_layers_per_block": [0, 1, 2, 1]},
    "attention twice": {
        "decoder_block_types": [RES, RES, ATTEND, ATTEND],
        "decoder_qkv_multiscales": [[], [], [3], [5, 7]],
        "decoder_layers_per_block": [1, 1, 2, 1],
    },
    "attention at one scale": {"decoder_qkv_multiscales": [[], [], [], []]},
    "no attention": {"decoder_block_types": [RES, RES, RES, RES]},
    "another norm": {"decoder_norm_types": "batch_norm"},
}


@pytest.fixture(scope="module", params=VARIANTS)
def decoder(request: pytest.FixtureRequest) -> Decoder:
    with torch.device("meta"):
        dcae = AutoencoderDC(**(DCAE | VARIANTS[request.param]))
    draw_weights(dcae, seed=0)
    for buffer in dcae.buffers():  # the statistics of batch norms
        buffer.fill_(1)
    return dcae.to(memory_format=torch.channels_last).decoder


def noise(columns: int) -> Tensor:
    image = torch.randn(1, 8, 16, columns, generator=torch.Generator().manual_seed(columns))
    return image.contiguous(memory_format=torch.channels_last)


def attended(parts: LatentDecoder, x: Tensor) -> Tensor:
    for step in range(parts.attending_steps):
        x = parts.attend(step, x)
    return x


@pytest.mark.parametrize("columns", [1, 2, 40])
@torch.inference_mode()
def test_the_parts_give_exactly_what_the_whole_decoder_gives(decoder: Decoder, columns: int) -> None:
    parts, x = LatentDecoder(decoder), noise(columns)

    assert torch.equal(parts.convolve(attended(parts, x), 0, columns), decoder(x))


@pytest.mark.parametrize("window", [1, 2, 7, 16, 39])
@torch.inference_mode()
def test_windows_give_the_image_of_the_whole(decoder: Decoder, window: int) -> None:
    parts, x = LatentDecoder(decoder), noise(40)
    image, song = attended(parts, x), decoder(x)

    windows = [parts.convolve(image, start, min(start + window, 40)) for start in range(0, 40, window)]

    assert relative_error(torch.cat(windows, dim=-1), song) < 1e-6


@pytest.mark.parametrize("tile", [3, 13, 39])
@torch.inference_mode()
def test_attention_over_tiles_of_a_long_song_is_that_of_the_whole(
    decoder: Decoder, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, x = LatentDecoder(decoder), noise(40)
    whole = attended(parts, x)
    monkeypatch.setattr(module, "TILE_COLUMNS", tile)

    assert relative_error(attended(parts, x), whole) < 2e-6


@torch.inference_mode()
def test_all_of_a_song_is_attended_to(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        dcae = AutoencoderDC(**DCAE)
    draw_weights(dcae, seed=0)
    parts, x = LatentDecoder(dcae.decoder), noise(40)
    monkeypatch.setattr(module, "TILE_COLUMNS", 8)
    image = attended(parts, x)

    x[..., -1] += 10

    assert not torch.equal(attended(parts, x)[..., 0], image[..., 0])
