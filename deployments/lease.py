"""How long a Generator may keep a song without a word, and without getting on with it. Pure."""

from dataclasses import dataclass

REPLACED_WITHIN_S = 30.0  # a replica whose engine hangs, so that its songs can be made elsewhere before they time out


def hangs_after_s(stall_s: float) -> float:
    """Return how long one step of an engine may take before its replica is replaced.

    Somewhat less than the `stall_s` in which songs may do no step, so that they are lost with the replica and made
    again, instead of failing; and as much of it as possible, because a slow CPU needs minutes for a large step.
    """
    return max(stall_s / 2, stall_s - REPLACED_WITHIN_S)


@dataclass(frozen=True)
class LeaseTerms:
    """`lease_s` without any message, and the replica is taken for lost; `stall_s` in which its engine does no step, and
    the song has failed.
    """

    lease_s: float
    stall_s: float


class Lease:
    """One attempt's. It begins with the first message: waiting for a replica is not limited."""

    def __init__(self, terms: LeaseTerms) -> None:
        self._terms = terms
        self._stalls_at: float | None = None
        self._steps: int | None = None  # that the engine had done when it last said so

    def renew(self, now: float, engine_steps: int | None = None) -> float:
        """A message came: until when the next must. `engine_steps` is given by one that tells of nothing else."""
        if self._stalls_at is None or engine_steps is None or engine_steps != self._steps:
            self._stalls_at = now + self._terms.stall_s
        if engine_steps is not None:
            self._steps = engine_steps
        return min(now + self._terms.lease_s, self._stalls_at)

    def has_stalled(self, now: float) -> bool:
        """Whether it is the engine that stands still, and not the replica that is silent."""
        return self._stalls_at is not None and now >= self._stalls_at
