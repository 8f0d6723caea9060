"""The engine's own transformer, made to learn: what `fold` rearranges stays a parameter, and can be put back.

The engine rearranges weights once they are loaded and forgets the published ones. Here it rearranges fresh ones, they
are trained as they then lie, and `published_weights` gives them the names and the layout of a checkpoint again.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from acestep_engine.model.attention import CrossAttention, Folded, LinearAttention, folded_order
from acestep_engine.model.transformer import GatedConvFeedForward, Transformer, TransformerBlock
from training.nano.batched import COMPILED_METHODS, OpenBlock, OpenPatchEmbedding

EMBEDDING_STD = 0.02


def make_trainable(model: Transformer) -> None:
    """Fold a transformer whose weights are real in the way that keeps every one of them a parameter. In place."""
    model.proj_in = OpenPatchEmbedding(model.proj_in)  # type: ignore[assignment]
    blocks: Sequence[TransformerBlock] = model.transformer_blocks  # type: ignore[assignment]
    with torch.no_grad():
        for block in blocks:
            for part in (block.attn, block.cross_attn, block.ff):
                part.fold()
            taps, bias = block.ff.taps, block.ff.taps_bias
            del block.ff.taps, block.ff.taps_bias
            block.ff.taps, block.ff.taps_bias = nn.Parameter(taps), nn.Parameter(bias)
    model.transformer_blocks = nn.ModuleList(OpenBlock(block) for block in blocks)
    model.requires_grad_(True).train()


def compile_parts(model: Transformer) -> None:
    """Fuse what is between the products of a trainable model; the first step of each length takes half a minute."""
    whole: list[tuple[nn.Module, str]] = [(model.proj_in, "embed"), (model.final_layer, "forward")]
    for module, method in whole + [(block, method) for block in _blocks(model) for method in COMPILED_METHODS]:
        setattr(module, method, torch.compile(getattr(module, method), dynamic=False))


def initialise(model: Transformer) -> None:
    """Weights to begin with, for those that PyTorch does not draw by itself: every block adds nothing yet."""
    with torch.no_grad():
        nn.init.normal_(model.lyric_embs.weight, std=EMBEDDING_STD)
        for name, parameter in model.named_parameters():
            if name.endswith("scale_shift_table"):
                parameter.normal_(std=EMBEDDING_STD)
            elif ".pos_bias_" in name:
                parameter.zero_()
        for name, parameter in model.named_parameters():
            if name.startswith(("final_layer.linear", "t_block")) or ".cross_attn.to_out" in name:
                parameter.zero_()


def published_weights(weights: Mapping[str, Tensor], model: Transformer) -> dict[str, Tensor]:
    """The `state_dict` of a trainable model, or averages of it by the same names, as a checkpoint holds them."""
    published = dict(weights)
    for index, block in enumerate(_blocks(model)):
        prefix = f"transformer_blocks.{index}"
        for name, kind in (("attn", LinearAttention), ("cross_attn", CrossAttention)):
            attention = getattr(block, name)
            inner = attention.to_out[0].in_features
            published |= _unfolded(published, f"{prefix}.{name}", kind.FOLDED, inner, attention.heads)
        published |= _unfolded_taps(published, f"{prefix}.ff.", block.ff)
    return published


def _unfolded(
    weights: dict[str, Tensor], prefix: str, folded: Mapping[str, Folded], inner: int, heads: int
) -> dict[str, Tensor]:
    """Queries, keys and values of one attention by their own names; what they were folded to is taken out."""
    order = folded_order(heads, inner // heads)
    found = {}
    for kind in ("weight", "bias"):
        for name, place in folded.items():
            part = weights[f"{prefix}.{place.name}.{kind}"][place.part * inner : (place.part + 1) * inner]
            found[f"{prefix}.{name}.{kind}"] = part[order.argsort()] if place.reordered else part
        for stack in {place.name for place in folded.values()}:
            del weights[f"{prefix}.{stack}.{kind}"]
    return found


def _unfolded_taps(weights: dict[str, Tensor], prefix: str, feed_forward: GatedConvFeedForward) -> dict[str, Tensor]:
    assert not hasattr(feed_forward, "depth_conv")
    taps, bias = weights.pop(f"{prefix}taps"), weights.pop(f"{prefix}taps_bias")  # (3, C), (C,)
    return {f"{prefix}depth_conv.conv.weight": taps.T.unsqueeze(1), f"{prefix}depth_conv.conv.bias": bias}


def _blocks(model: Transformer) -> Sequence[OpenBlock]:
    """Of a trainable model."""
    return model.transformer_blocks  # type: ignore[return-value]
