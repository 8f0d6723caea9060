"""The DC autoencoder's encoder in parts of bounded memory, with the figures of the whole.

Its first layers are convolutions of a short reach, on images of many columns: they run over windows of time, each with
as much context as they can see. Its attention sees the whole song, at the lowest resolution.
The modules stay diffusers' own.
"""

import torch
from diffusers.models.autoencoders.autoencoder_dc import DCDownBlock2d, Encoder, ResBlock
from torch import Tensor, nn

from acestep_engine.model.tiles import parts_of, run_in_tiles
from acestep_engine.model.windows import equal_windows, with_halo

WINDOW_COLUMNS = 2048  # of the log-mel: 24 s


class LatentEncoder:
    """Encodes images (1, C, H, columns), the columns a multiple of 8, to latents (1, 8, 16, columns / 8)."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        modules = [encoder.conv_in, *parts_of(module for block in encoder.down_blocks for module in block)]
        attending = (i for i, one in enumerate(modules) if not isinstance(one, ResBlock | DCDownBlock2d | nn.Conv2d))
        cut = next(attending, len(modules))
        self._convolutions, self._attending = modules[:cut], modules[cut:]
        self._factor = 1
        halo = 0
        for module in reversed(self._convolutions):
            self._factor *= _factor(module)
            halo = _halo_before(module, halo)
        self._halo = -(-halo // self._factor) * self._factor

    def __call__(self, image: Tensor) -> Tensor:
        x = self._convolved(image)
        for module in self._attending:
            x = run_in_tiles(module, x)
        latents: Tensor = self._encoder.conv_out(x)
        if not self._encoder.out_shortcut:
            return latents
        return latents + x.unflatten(1, (-1, self._encoder.out_shortcut_average_group_size)).mean(dim=2)

    def _convolved(self, image: Tensor) -> Tensor:
        columns, factor = image.shape[-1], self._factor
        convolved: Tensor | None = None
        for start, stop in equal_windows(0, columns, WINDOW_COLUMNS, factor):
            first, last = with_halo(start, stop, self._halo, columns)
            x = image[..., first:last].contiguous(memory_format=torch.channels_last)
            for module in self._convolutions:
                x = module(x)
            if convolved is None:
                convolved = x.new_empty(*x.shape[:-1], columns // factor)
                convolved = convolved.contiguous(memory_format=torch.channels_last)
            convolved[..., start // factor : stop // factor] = x[
                ..., (start - first) // factor : (stop - first) // factor
            ]
        assert convolved is not None
        return convolved


def _factor(module: nn.Module) -> int:
    return module.factor if isinstance(module, DCDownBlock2d) else 1


def _halo_before(module: nn.Module, halo: int) -> int:
    """Return how many columns on either side `halo` columns on either side of the module's output are made from."""
    if isinstance(module, ResBlock):
        return _halo_before(module.conv2, _halo_before(module.conv1, halo))
    if isinstance(module, DCDownBlock2d):
        return module.factor * halo + _halo_before(module.conv, 0)
    assert isinstance(module, nn.Conv2d)
    return halo + module.kernel_size[-1] // 2
