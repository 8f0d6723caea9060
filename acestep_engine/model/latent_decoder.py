"""The DC autoencoder's decoder in parts of bounded work, with the figures of the whole.

Its attention sees the whole song, at the lowest resolution. All else are convolutions of a short reach: they run over
windows of time, each with as much context as they can see. The modules stay diffusers' own.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import SanaMultiscaleLinearAttention
from diffusers.models.autoencoders.autoencoder_dc import DCUpBlock2d, Decoder, EfficientViTBlock, ResBlock
from diffusers.models.transformers.sana_transformer import GLUMBConv
from torch import Tensor, nn

from acestep_engine.model.windows import with_halo

# Attention, and the wide convolutions between, run over tiles of time, which gives the same image: a long song does not
# need memory for all of its queries, keys and values, in float32, and all of eight times as many channels.
TILE_COLUMNS = 256


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
        modules = list(_parts(module for block in reversed(decoder.up_blocks) for module in block))
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
        module = self._attending[step - 1]
        long = x.shape[-1] > TILE_COLUMNS
        if long and isinstance(module, GLUMBConv):
            return _convolved_in_tiles(module, x)
        if long and isinstance(module, SanaMultiscaleLinearAttention) and module.norm_type == "rms_norm":
            return _attended_in_tiles(module, x)
        return module(x)

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


def _parts(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """The modules, with an EfficientViT block as the two that it is made of."""
    for module in modules:
        yield from (module.attn, module.conv_out) if isinstance(module, EfficientViTBlock) else (module,)


def _tiles(columns: int) -> list[slice]:
    return [slice(start, min(start + TILE_COLUMNS, columns)) for start in range(0, columns, TILE_COLUMNS)]


def _with_context(module: Callable[[Tensor], Tensor], x: Tensor, tile: slice, halo: int) -> Tensor:
    """The tile of the module's image, for a module that sees `halo` columns on either side."""
    first, last = with_halo(tile.start, tile.stop, halo, x.shape[-1])
    return module(x[..., first:last])[..., tile.start - first : tile.stop - first]


def _convolved_in_tiles(module: GLUMBConv, x: Tensor) -> Tensor:
    image = torch.empty_like(x)
    for tile in _tiles(x.shape[-1]):
        image[..., tile] = _with_context(module, x, tile, module.conv_depth.padding[-1])
    return image


def _attended_in_tiles(attention: SanaMultiscaleLinearAttention, x: Tensor) -> Tensor:
    """What the module computes of x (1, C, H, columns), with an RMS norm.

    Linear attention sums values times keys over all pixels, and multiplies every pixel's query with that one sum.
    """
    tiles = _tiles(x.shape[-1])
    halo = max((block.proj_in.padding[-1] for block in attention.to_qkv_multiscale), default=0)
    queries, total = [], None
    for tile in tiles:
        qkv = _with_context(partial(_queries_keys_values, attention), x, tile, halo)
        query, key, value = qkv.float().unflatten(1, (-1, 3, attention.attention_head_dim))[0].flatten(3).unbind(1)
        queries.append(attention.nonlinearity(query).to(x.dtype))  # (heads, D, pixels)
        part = F.pad(value, (0, 0, 0, 1), value=1) @ attention.nonlinearity(key).mT  # (heads, D + 1, D)
        total = part if total is None else total + part
    image = torch.empty_like(x)
    for tile, query in zip(tiles, queries, strict=True):
        attended = total @ query.float()
        attended = (attended[:, :-1] / (attended[:, -1:] + attention.eps)).to(x.dtype)
        attended = attended.unflatten(2, (x.shape[2], -1)).flatten(0, 1).permute(1, 2, 0)  # (H, columns, heads * D)
        image[0, :, :, tile] = attention.norm_out(attention.to_out(attended)).permute(2, 0, 1) + x[0, :, :, tile]
    return image


def _queries_keys_values(attention: SanaMultiscaleLinearAttention, x: Tensor) -> Tensor:
    """Of x (1, C, H, columns), at every scale, one after the other along the channels."""
    pixels = x.movedim(1, -1)
    qkv = torch.cat([attention.to_q(pixels), attention.to_k(pixels), attention.to_v(pixels)], dim=-1).movedim(-1, 1)
    return torch.cat([qkv, *(block(qkv) for block in attention.to_qkv_multiscale)], dim=1)


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
