"""One forward for many requests: packs what each of them asks for, and answers each with its own velocities."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from acestep_engine.caching import LruCache
from acestep_engine.graphs import GraphedTransformer
from acestep_engine.model.low_rank import AdapterKey, WeightedAdapter, key_of
from acestep_engine.model.packing import GAP_FRAMES, Context, Packing, pack
from acestep_engine.model.transformer import Modulation, Transformer
from acestep_engine.tasks.state import Query

KEPT_PACKINGS = 4  # the scheduler may go to and fro between a few companies, side by side even
KEPT_MODULATIONS = 128  # more than the timesteps of two usual schedules; 0.7 MB each at full size
KEPT_MODULATION_BYTES = 2**28


@dataclass(frozen=True)
class Share:
    """What one request brings to a forward: the rows it asks for, and the context that they attend to a prefix of."""

    queries: tuple[Query, ...]
    context: Context

    @property
    def frames(self) -> int:
        return self.queries[0].latents.shape[-1]


class Batch:
    """Forwards of one transformer. What depends only on who takes part, or only on a timestep, is kept for the next.

    Several threads may run forwards at a time, unless they are recorded ones.
    """

    def __init__(self, transformer: Transformer, device: torch.device, dtype: torch.dtype) -> None:
        self.transformer = transformer
        self._device = device
        self.dtype = dtype
        self.graphed: GraphedTransformer | None = None  # runs the forwards, if there is one
        self._packings: LruCache[tuple[object, ...], Packing] = LruCache(KEPT_PACKINGS)
        self._modulations: LruCache[tuple[float, AdapterKey], Modulation] = LruCache(
            KEPT_MODULATIONS, KEPT_MODULATION_BYTES, lambda modulation: modulation.nbytes
        )
        self._rotation_table = transformer.rotation_table(0, device)

    def forward(self, shares: Sequence[Share]) -> list[list[Tensor]]:
        """Velocities (8, 16, T) float32, one for each query of each share, in the order given."""
        order = sorted(range(len(shares)), key=lambda i: shares[i].frames)  # equal lengths side by side
        ordered = [shares[i] for i in order]
        queries = [query for share in ordered for query in share.queries]
        modulations = [
            self._modulation(query.timestep, share.context.adapter) for share in ordered for query in share.queries
        ]
        run = self.graphed or self.transformer
        velocities = iter(run([query.latents for query in queries], modulations, self._packing(ordered)))
        answers = {i: [next(velocities) for _ in shares[i].queries] for i in order}
        return [answers[i] for i in range(len(shares))]

    def forget_packings(self) -> None:
        """Let go of the contexts of earlier companies."""
        self._packings.clear()
        if self.graphed is not None:
            self.graphed.forget()

    def free(self) -> None:
        """Let go of all that is kept for later forwards: the memory is needed."""
        self.forget_packings()
        self._modulations.clear()
        self._rotation_table = self.transformer.rotation_table(0, self._device)

    def _packing(self, shares: Sequence[Share]) -> Packing:
        scales = [tuple(query.query_scale for query in share.queries) for share in shares]
        # A kept packing holds its contexts, so that their ids stay theirs.
        key = tuple((id(share.context), share.frames, of_one) for share, of_one in zip(shares, scales, strict=True))
        packing = self._packings.get(key)
        if packing is None:
            longest, table = max(share.frames for share in shares) + GAP_FRAMES, self._rotation_table
            if len(table[0]) < longest:
                self._rotation_table = table = self.transformer.rotation_table(longest, self._device)
            shapes = [(share.frames, share.context) for share in shares]
            packing = pack(shapes, scales, table, self.dtype)
            self._packings.put(key, packing)
        return packing

    def _modulation(self, timestep: float, adapter: WeightedAdapter | None) -> Modulation:
        if adapter is not None and not adapter.adapter.adapts_timesteps:
            adapter = None
        key = timestep, key_of(adapter)
        modulation = self._modulations.get(key)
        if modulation is None:
            modulation = self.transformer.modulate(torch.full((), timestep, device=self._device), adapter)
            self._modulations.put(key, modulation)
        return modulation
