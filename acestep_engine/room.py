"""Who waits while memory is short, so that nobody fails for want of what others hold and will give back."""

import sys
from collections.abc import Sequence

from acestep_engine.live_request import LiveRequest

UNBOUNDED = sys.maxsize


class Room:
    """How many requests there is memory for, as far as is known from those that found none.

    A request whose unit does not fit, not even alone, pauses until fewer have begun than when it failed. Nobody begins
    until it has had its unit, and then only as many as leave room.
    """

    def __init__(self) -> None:
        self._most_begun = UNBOUNDED
        self._begun = 0

    def has_place(self, begun: Sequence[LiveRequest]) -> bool:
        """Whether one more may begin beside these."""
        return len(begun) < self._most_begun and not any(_was_paused(one) for one in begun)

    def note(self, begun: Sequence[LiveRequest]) -> None:
        """Those that have begun. Where some have left since the last time, one more than found room may be tried."""
        if not begun:
            self._most_begun = UNBOUNDED
        elif len(begun) < self._begun and self._most_begun < UNBOUNDED and not any(_was_paused(one) for one in begun):
            self._most_begun += 1
        self._begun = len(begun)

    def was_too_small(self, begun: int) -> None:
        """For one more beside so many."""
        self._most_begun = begun

    def pause(self, request: LiveRequest, begun: Sequence[LiveRequest]) -> bool:
        """Have a request of those that have begun wait until one of the others has left.

        False if there is nobody to wait for: the others, if there are any, wait themselves.
        """
        if all(one is request or is_paused(one, len(begun)) for one in begun):
            return False
        request.too_many = len(begun)
        self._most_begun = min(self._most_begun, len(begun) - 1)
        return True


def is_paused(request: LiveRequest, begun: int) -> bool:
    """Whether it waits for some of these to leave."""
    return request.too_many is not None and begun >= request.too_many


def _was_paused(request: LiveRequest) -> bool:
    """And has done no unit since."""
    return request.too_many is not None
