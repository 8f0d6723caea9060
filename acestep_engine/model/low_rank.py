"""LoRA (arXiv 2106.09685): what an adapter adds to the outputs of a projection, for the tokens of those who want it.

The weights of the model are never changed. An adapter is placed once, in the folded layout of the model's projections
(see `attention`), and an `Adaptation` is passed down the modules: which tokens of this pass run under which adapter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

from torch import Tensor

from acestep_engine.model.linear import project

# Projections that the modulation of a timestep goes through: it is shared by all who are at that timestep.
TIMESTEP_PROJECTIONS = ("timestep_embedder.linear_1", "timestep_embedder.linear_2", "t_block.1")


@dataclass(frozen=True, eq=False)
class Update:
    """Adds `scale * up @ down` to the weight of one projection, or to the rows `outputs` of it.

    `down` (r, in) and `up` (outputs, r), in the model's precision.
    """

    down: Tensor
    up: Tensor
    scale: float
    outputs: slice

    @property
    def nbytes(self) -> int:
        return self.down.nbytes + self.up.nbytes


@dataclass(frozen=True, eq=False)
class PlacedAdapter:
    """An adapter on the device. `updates` by the name of the folded projection; `digest` is that of its files."""

    digest: str
    updates: Mapping[str, tuple[Update, ...]]

    @cached_property
    def nbytes(self) -> int:
        return sum(update.nbytes for of_one in self.updates.values() for update in of_one)

    @cached_property
    def adapts_timesteps(self) -> bool:
        return any(name in self.updates for name in TIMESTEP_PROJECTIONS)


@dataclass(frozen=True)
class WeightedAdapter:
    """An adapter as strongly as a request wants it."""

    adapter: PlacedAdapter
    weight: float


AdapterKey = tuple[str, float] | None


def key_of(weighted: WeightedAdapter | None) -> AdapterKey:
    """Equal for those that do the same to a song."""
    return None if weighted is None else (weighted.adapter.digest, weighted.weight)


@dataclass(frozen=True, eq=False)
class Adaptation:
    """The tokens of one pass that run under adapters, seen from the module `path` of the model ("" or "a.b.")."""

    parts: tuple[tuple[slice, WeightedAdapter], ...]
    path: str = ""

    def within(self, name: str) -> Self:
        """As the inner module of this name sees it."""
        return replace(self, path=f"{self.path}{name}.")

    def add(self, y: Tensor, x: Tensor, name: str) -> Tensor:
        """Add what adapters make of the inputs x (..., in) of a projection to its outputs y (..., out), in place."""
        outputs, inputs = y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1])
        for tokens, weighted in self.parts:
            for update in weighted.adapter.updates.get(self.path + name, ()):
                hidden = project(inputs[tokens], update.down)  # (tokens, r)
                added = project(hidden, update.up)
                outputs[tokens, update.outputs].add_(added, alpha=weighted.weight * update.scale)
        return y


def everywhere(weighted: WeightedAdapter | None) -> Adaptation | None:
    """Of a pass that belongs to one request."""
    return None if weighted is None else Adaptation(((slice(None), weighted),))


def of_tokens(ranges: Sequence[tuple[slice, WeightedAdapter | None]]) -> Adaptation | None:
    """Of neighbouring ranges, in order; those of one adapter are joined. None if nobody has an adapter."""
    joined: list[tuple[slice, WeightedAdapter]] = []
    for tokens, weighted in ranges:
        if weighted is None:
            continue
        if joined and joined[-1][0].stop == tokens.start and key_of(joined[-1][1]) == key_of(weighted):
            tokens = slice(joined.pop()[0].start, tokens.stop)
        joined.append((tokens, weighted))
    return Adaptation(tuple(joined)) if joined else None


def within(adaptation: Adaptation | None, name: str) -> Adaptation | None:
    return None if adaptation is None else adaptation.within(name)


def adapted(y: Tensor, x: Tensor, adaptation: Adaptation | None, name: str) -> Tensor:
    """The outputs y of the projection `name` of x, with what adapters add to them."""
    return y if adaptation is None else adaptation.add(y, x, name)
