"""The DC autoencoder's attention and wide convolutions, over tiles of time: the same image, in less memory.

A long song does not need memory for all of its queries, keys and values, in float32, and all of eight times as many
channels.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import SanaMultiscaleLinearAttention
from diffusers.models.autoencoders.autoencoder_dc import EfficientViTBlock
from diffusers.models.transformers.sana_transformer import GLUMBConv
from torch import Tensor, nn

from acestep_engine.model.windows import with_halo

TILE_COLUMNS = 256


def parts_of(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """Yield the modules, with an EfficientViT block as the two that it is made of."""
    for module in modules:
        yield from (module.attn, module.conv_out) if isinstance(module, EfficientViTBlock) else (module,)


def run_in_tiles(module: nn.Module, x: Tensor) -> Tensor:
    """Run a module on an image (1, C, H, columns), in tiles if that is long and the module is known."""
    long = x.shape[-1] > TILE_COLUMNS
    if long and isinstance(module, GLUMBConv):
        return _convolved_in_tiles(module, x)
    if long and isinstance(module, SanaMultiscaleLinearAttention) and module.norm_type == "rms_norm":
        return _attended_in_tiles(module, x)
    image: Tensor = module(x)
    return image


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
