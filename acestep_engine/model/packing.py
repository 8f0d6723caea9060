"""How the frames of many requests lie in one forward: row after row, whatever their lengths, without padding.

A row is one song's latent frames under one condition, and one frame of zeros that keeps it from its neighbour in the
kernel-3 convolutions. Everything that sees one frame at a time runs on all tokens (N, dim) at once; the two attentions
run request by request, because nobody attends to another request.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from acestep_engine.model.low_rank import Adaptation, WeightedAdapter, of_tokens

GAP_FRAMES = 1  # between two rows; as much as the depthwise convolutions see on one side

KeyValue = tuple[Tensor, Tensor]  # keys (rotated) and values, each (R, H, C, D)
Rotation = tuple[Tensor, Tensor]  # cosines and sines of every token, each (N, 1, D), float32


@dataclass(frozen=True)
class Context:
    """What the frames of one request attend to, ready for every step: keys and values of each block.

    They were made under `adapter`, and the frames run under it too.
    """

    key_values: tuple[KeyValue, ...]
    adapter: WeightedAdapter | None = None


@dataclass(frozen=True)
class Segment:
    """The rows of one request: tokens [start, start + rows * width), each row `width` tokens, the last one its gap."""

    start: int
    rows: int
    width: int
    context: Context

    @property
    def stop(self) -> int:
        return self.start + self.rows * self.width

    def key_value(self, block: int) -> KeyValue:
        """Keys and values (rows, H, C, D) of one block; a request with fewer rows uses the first ones."""
        k, v = self.context.key_values[block]
        return k[: self.rows], v[: self.rows]


@dataclass(frozen=True)
class Span:
    """Rows of equal width that lie side by side, of one request or several."""

    start: int
    rows: int
    width: int

    @property
    def stop(self) -> int:
        return self.start + self.rows * self.width


@dataclass(frozen=True)
class Packing:
    """Where everything lies in one forward. It holds as long as the same requests take part with the same rows."""

    segments: tuple[Segment, ...]
    spans: tuple[Span, ...]
    tokens: int
    rotation: Rotation
    gaps: Tensor  # (rows,) the tokens that are gaps
    row_of_token: Tensor  # (N,)
    query_scale: Tensor | None  # (N, 1): weakens the cross-attention of some blocks; None if nobody asks for it
    adaptation: Adaptation | None = None  # None if nobody has an adapter

    def row_frames(self) -> Iterator[tuple[int, int]]:
        """The first token and the number of frames of each row, without its gap."""
        for segment in self.segments:
            for start in range(segment.start, segment.stop, segment.width):
                yield start, segment.width - GAP_FRAMES


def pack(
    shapes: Sequence[tuple[int, Context]],
    query_scales: Sequence[Sequence[float]],
    rotation_table: tuple[Tensor, Tensor],
    dtype: torch.dtype,
) -> Packing:
    """Lay requests out in the order given. `shapes` are (frames, context) of each; `query_scales` one number per row.

    `rotation_table` holds cosines and sines of positions, each (at least frames + 1, D).
    """
    device = rotation_table[0].device
    segments: list[Segment] = []
    start = 0
    for (frames, context), scales in zip(shapes, query_scales, strict=True):
        segments.append(Segment(start, len(scales), frames + GAP_FRAMES, context))
        start = segments[-1].stop
    widths = torch.tensor([segment.width for segment in segments for _ in range(segment.rows)])
    row_of_token = torch.repeat_interleave(torch.arange(len(widths)), widths)  # (N,)
    stops = widths.cumsum(0)
    positions = torch.arange(start) - (stops - widths)[row_of_token]
    query_scale = torch.tensor([scale for of_one in query_scales for scale in of_one], dtype=dtype)
    cos, sin = (table[positions.to(device)].unsqueeze(1) for table in rotation_table)  # (N, 1, D)
    return Packing(
        segments=tuple(segments),
        spans=_spans(segments),
        tokens=start,
        rotation=(cos, sin),
        gaps=(stops - 1).to(device),
        row_of_token=row_of_token.to(device),
        query_scale=None if bool((query_scale == 1.0).all()) else query_scale[row_of_token].unsqueeze(1).to(device),
        adaptation=of_tokens([(slice(one.start, one.stop), one.context.adapter) for one in segments]),
    )


def _spans(segments: Sequence[Segment]) -> tuple[Span, ...]:
    spans = []
    for width, group in groupby(segments, key=lambda segment: segment.width):
        same = list(group)
        spans.append(Span(same[0].start, sum(segment.rows for segment in same), width))
    return tuple(spans)
