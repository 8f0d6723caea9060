"""The DC autoencoder's decoder in parts of bounded work, with the figures of the whole.

Its attention sees the whole song, at the lowest resolution. All else are convolutions of a short reach: they run over
windows of time, each with as much context as they can see. The modules stay diffusers' own.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers.models.autoencoders.autoencoder_dc import DCUpBlock2d, Decoder, ResBlock
from torch import Tensor, nn

from acestep_engine.model.tiles import parts_of, run_in_tiles
from acestep_engine.model.windows import with_halo


@dataclass(frozen=True)
class Convolution:
    """A step of the second part. `halo`: columns that it and all after it see on either side of their own."""

    run: Callable[[Tensor], Tensor]
    factor: int
    halo: int


class LatentDecoder:
    """`attend` for each of `attending_steps` in turn, over the whole song; then `convolve`, window by window.

    Images are (1, C, H, columns), with one column per latent frame at first.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        modules = list(parts_of(module for block in reversed(decoder.up_blocks) for module in block))
        attending = [i for i, module in enumerate(modules) if not isinstance(module, ResBlock | DCUpBlock2d)]
        cut = attending[-1] + 1 if attending else 0
        self._attending = modules[:cut]
        self.attending_steps = 1 + cut
        self._columns_per_latent = 2 ** sum(isinstance(module, DCUpBlock2d) for module in self._attending)
        halo = _halo_before(decoder.conv_out, 0)
        convolutions = [Convolution(self._finish, _factor(decoder.conv_out), halo)]
        for module in reversed(modules[cut:]):
            halo = _halo_before(module, halo)
            convolutions.append(Convolution(module, _factor(module), halo))
        self._convolutions = tuple(reversed(convolutions))

    def attend(self, step: int, x: Tensor) -> Tensor:
        """One step of the first part, from the latents (1, 8, 16, T) at step 0 to what `convolve` takes."""
        if step == 0:
            return self._start(x)
        return run_in_tiles(self._attending[step - 1], x)

    def convolve(self, x: Tensor, start: int, stop: int) -> Tensor:
        """The decoded image of latent frames [start, stop) of the song: the same, alone or as a part of all."""
        start, stop = start * self._columns_per_latent, stop * self._columns_per_latent
        for step, convolution in enumerate(self._convolutions):
            if step == 0 or convolution.factor > 1:  # what the rest does not see is dropped before it grows
                first, last = with_halo(start, stop, convolution.halo, x.shape[-1])
                x = x[..., first:last].contiguous(memory_format=torch.channels_last)
                start, stop = start - first, stop - first
            x = convolution.run(x)
            start, stop = start * convolution.factor, stop * convolution.factor
        return x[..., start:stop]

    def _start(self, latents: Tensor) -> Tensor:
        x = self._decoder.conv_in(latents)
        if not self._decoder.in_shortcut:
            return x
        repeats = self._decoder.in_shortcut_repeats
        # with the size given, a GPU is not waited for
        return x + latents.repeat_interleave(repeats, dim=1, output_size=repeats * latents.shape[1])

    def _finish(self, x: Tensor) -> Tensor:
        normed = self._decoder.norm_out(x.movedim(1, -1)).movedim(-1, 1)
        return self._decoder.conv_out(self._decoder.conv_act(normed))


def _factor(module: nn.Module) -> int:
    return module.factor if isinstance(module, DCUpBlock2d) else 1


def _halo_before(module: ResBlock | DCUpBlock2d | nn.Conv2d, halo: int) -> int:
    """Columns on either side that `halo` columns on either side of the module's output are made from."""
    if isinstance(module, ResBlock):
        return _halo_before(module.conv2, _halo_before(module.conv1, halo))
    if not isinstance(module, DCUpBlock2d):
        return halo + module.kernel_size[-1] // 2
    reach = _halo_before(module.conv, 0)
    if module.interpolate:  # grows, then convolves
        return -(-(halo + reach) // module.factor)
    return -(-halo // module.factor) + reach
