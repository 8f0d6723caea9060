"""Processes that train one model: each steps on rows of its own, with the mean of all gradients.

`torchrun --standalone --nproc-per-node 2 -m training.nano.transformer ...` starts two. On a CPU, two processes
of one thread do more than one of two threads. Alone, without torchrun, a team has one member and nothing is exchanged.
"""

import atexit
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters


@dataclass(frozen=True)
class Team:
    """A member: `rank` 0 to `size` - 1. The first one logs, judges, saves and exports."""

    rank: int = 0
    size: int = 1

    def share(self, number: int) -> int:
        """For the `number`-th thing that every member draws: a number that no other member has."""
        return number * self.size + self.rank

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """In place, over all members, which have to call it for the same parameters. None counts as zeros."""
        if self.size == 1:
            return
        known = list(parameters)
        for parameter in known:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in known if parameter.grad is not None]
        whole = parameters_to_vector(gradients)
        dist.all_reduce(whole)
        vector_to_parameters(whole / self.size, gradients)

    def follow_first(self, value: float) -> float:
        """What the first member calls this with."""
        if self.size == 1:
            return value
        said = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(said, 0)
        return said.item()


def join_team() -> Team:
    """The team that torchrun started this process for, or one of its own."""
    if not dist.is_torchelastic_launched():
        return Team()
    dist.init_process_group("gloo")
    atexit.register(dist.destroy_process_group)
    return Team(dist.get_rank(), dist.get_world_size())
