"""What the engine knows of a task: which rows a request asks for in the next forward, and what becomes of the answers.

A task is a value: `queries` says which rows it needs in the next forward, `advance` takes their velocities and answers
the next value. The engine knows nothing else of a task, so that requests of different tasks share a forward pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from torch import Tensor

LATENT_CHANNELS = 8
LATENT_HEIGHT = 16

# Rows of a request's context, in this order; a request has a prefix of them.
CONDITIONED, UNCONDITIONED, TEXT_ONLY = range(3)


@dataclass(frozen=True, eq=False)
class Query:
    """One row of a forward: latents (8, 16, T) at a timestep in 0..1000, attending to row `row` of a context.

    `context` counts the contexts that the request brought; queries to the same one lie side by side and ask for a
    prefix of its rows, in order. `query_scale` below 1 weakens the cross-attention of some blocks (entropy-rectifying
    guidance).
    """

    latents: Tensor
    timestep: float
    row: int
    query_scale: float = 1.0
    context: int = 0


class TaskState(Protocol):
    """A request between two forwards."""

    @property
    def latents(self) -> Tensor:
        """(8, 16, T), float32; the song, once all forwards are done."""

    @property
    def forwards_done(self) -> int: ...

    @property
    def forwards(self) -> int:
        """How many forwards the whole request takes."""

    @property
    def rows(self) -> int:
        """How many rows the next forward asks for, of which there must be one: the queries, without making them."""

    @property
    def rows_left(self) -> int:
        """How many rows all forwards that are left ask for."""

    def queries(self) -> tuple[Query, ...]:
        """The rows of the next forward, at least one."""

    def advance(self, velocities: Sequence[Tensor]) -> Self:
        """The state after the forward that answered `queries`, velocities (8, 16, T) in the same order."""
