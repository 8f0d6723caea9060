"""Which requests do the next unit of device work. Pure Python: what a unit computes is the engine's business.

A unit is one forward that several requests share, or one decode window of one request; whoever is not in it pauses.
Work is counted in tokens: rows times latent frames of a forward, and as many as take the same time for a window.

Order: highest priority, then least work left, then earliest arrival. Least work left first (shortest remaining
processing time; Schrage 1968) gives the lowest mean time to finish: a song of 10 s passes those of 240 s between two
of their units. Alone it would starve the long ones, so the oldest request is owed a share of the device.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

UNITS_TO_GROW = 500  # seconds to minutes
MOST_TIMES_THE_COST = 8  # a guided song of 30 s has six times the tokens of an unguided one of 10 s


@dataclass(frozen=True)
class Demand:
    """What one request asks for. `cost`: tokens of its next unit, at least 1; `work`: of all it has left, that one too.

    A higher `priority` runs first. `held`: it may not have its next unit yet, and only keeps its place.
    """

    request_id: str
    kind: Literal["forward", "decode"]
    cost: int
    work: int
    priority: int = 0
    held: bool = False


class Scheduler:
    """Chooses unit by unit. One thread at a time; the same calls in the same order give the same choices.

    `max_tokens` bounds a shared forward; one request may exceed it alone. Whoever shares a forward waits for all of it,
    so none joins that is more than `MOST_TIMES_THE_COST` as large as the first in order: songs of 10 and of 30 s share
    forwards, a song of 240 s takes turns with them.

    The oldest request, of whatever priority, is owed `oldest_share` (over 0, at most 1) of the device. Its credit is
    that share of all work done since it became the oldest, less its own part, kept within 0 and its work left:
    - units that it was in anyway count as paid, but what it got ahead of its share is not held against it later;
    - credit is personal: whoever becomes the oldest, because the last one finished or left, begins at 0.
    As soon as its credit covers its next unit, it goes before all others.

    Hence nobody starves. Before the last unit that passes the oldest over, its credit is less than that unit of its
    own, so all work done until then is less than its own work / `oldest_share`; after that it is in every unit. So it
    finishes, the next one becomes the oldest, and in the end everyone does.
    """

    def __init__(self, max_tokens: int, oldest_share: float = 0.2) -> None:
        if max_tokens < 1:
            raise ValueError(f"max_tokens is {max_tokens}, must be at least 1")
        if not 0 < oldest_share <= 1:
            raise ValueError(f"oldest_share is {oldest_share}, must be over 0 and at most 1")
        self.max_tokens = self._most_tokens = max_tokens
        self._units = 0  # since the budget last changed
        self.oldest_share = oldest_share
        self._oldest_id: str | None = None
        self._credit = 0.0  # tokens owed to that request

    def choose(
        self, demands: Sequence[Demand], running: Collection[str] = frozenset(), lanes: int = 1
    ) -> tuple[str, ...]:
        """The ids of those that do the next unit: forwards to share, or a single decode window.

        `demands` are all requests in order of arrival, at least one, each id once. The unit counts as done: call once
        for each. Nobody is chosen if all are held.

        Where up to `lanes` units run side by side, each has its part of the requests at most, and `running` are the ids
        of those whose units run now. Nobody is chosen if the device is better left to these, because the next one is of
        a lower priority or much larger, or if one forward is so large that it needs the whole device.
        """
        self._grow()
        oldest = demands[0]
        if oldest.request_id != self._oldest_id:
            self._oldest_id, self._credit = oldest.request_id, 0.0
        free = [demand for demand in demands if demand.request_id not in running and not demand.held]
        beside = [demand for demand in demands if demand.request_id in running]
        due = self._credit >= oldest.cost and oldest in free
        ranked = sorted(free, key=lambda demand: _rank(demand, ahead=due and demand is oldest))
        if not ranked or not self._suits(ranked[0], beside, due=due):
            return ()
        first, *others = ranked
        unit = [first]
        if first.kind == "forward":
            fitting = _that_fit(others, self.max_tokens - first.cost, MOST_TIMES_THE_COST * first.cost)
            unit += fitting[: ceil(len(demands) / lanes) - 1]
        self._account(oldest, unit)
        return tuple(demand.request_id for demand in unit)

    def shrink(self) -> bool:
        """After out of memory: halve `max_tokens`. False if it is 1, where all run alone already.

        It doubles after every `UNITS_TO_GROW` units, up to what it was at first: others may have held the memory. If
        they did not, that costs all in it a unit in so many.
        """
        self._units = 0
        if self.max_tokens == 1:
            return False
        self.max_tokens //= 2
        return True

    def _grow(self) -> None:
        self._units += 1
        if self._units > UNITS_TO_GROW and self.max_tokens < self._most_tokens:
            self.max_tokens, self._units = min(2 * self.max_tokens, self._most_tokens), 1

    def _suits(self, demand: Demand, beside: Sequence[Demand], *, due: bool) -> bool:
        """Whether its unit may slow down those that run."""
        if not beside:
            return True
        if any(one.kind == "forward" and one.cost > self.max_tokens for one in (demand, *beside)):
            return False  # at a part of the speed, whoever comes would wait too long for it
        priority = max(one.priority for one in beside)
        largest = max(one.cost for one in beside)
        small = demand.cost <= MOST_TIMES_THE_COST * largest
        return due or demand.priority > priority or (demand.priority == priority and small)

    def _account(self, oldest: Demand, unit: Sequence[Demand]) -> None:
        own = oldest.cost if oldest in unit else 0
        credit = self._credit + self.oldest_share * sum(demand.cost for demand in unit) - own
        self._credit = min(max(credit, 0.0), oldest.work - own)


def _rank(demand: Demand, ahead: bool) -> tuple[bool, int, int]:
    """Sorts first what runs first. Sorting is stable: among equals the order of arrival stays."""
    return not ahead, -demand.priority, demand.work


def _that_fit(demands: Sequence[Demand], tokens: int, largest: int) -> list[Demand]:
    """The forwards of at most `largest` tokens each that fit into `tokens` together.

    One that does not is passed over for later, smaller ones.
    """
    fitting: list[Demand] = []
    for demand in demands:
        if demand.kind == "forward" and demand.cost <= min(tokens, largest):
            fitting.append(demand)
            tokens -= demand.cost
    return fitting
