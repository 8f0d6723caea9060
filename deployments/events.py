"""What happens to one job, for those who follow it live. In memory; what has ended is told again from the store."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from deployments.messages import EventKind, JobEvent

KEPT_EVENTS = 256  # of one job: those who come back after longer miss steps in between, never the end
STEP_INTERVAL_S = 0.25  # between two events of the same kind


class EventLog:
    """The events of one job, the last ones first to be kept. Use it from one event loop."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """`clock` answers Unix seconds: ids are its milliseconds, so that a restarted service goes on counting."""
        self._clock = clock
        self._events: deque[JobEvent] = deque(maxlen=KEPT_EVENTS)
        self._told_at = 0.0
        self._changed = asyncio.Event()

    @property
    def ended(self) -> bool:
        return bool(self._events) and self._events[-1].last

    def add(self, kind: EventKind, data: dict[str, Any]) -> None:
        """Tell all who follow; nothing is told after the end.

        What only moves on within a stage is told at most every `STEP_INTERVAL_S`; the first and the end always are.
        """
        now = self._clock()
        before = self._events[-1] if self._events else None
        if before is not None:
            repeats = before.kind == kind and 0 <= now - self._told_at < STEP_INTERVAL_S
            if before.last or before.data == data or repeats:
                return
        event_id = max(int(now * 1000), before.event_id + 1 if before is not None else 0)
        self._events.append(JobEvent(event_id, kind, data))
        self._told_at = now
        self._changed.set()
        self._changed = asyncio.Event()

    def after(self, event_id: int) -> list[JobEvent]:
        """Those kept that came after this id, in order."""
        return [event for event in self._events if event.event_id > event_id]

    async def wait_after(self, event_id: int, timeout_s: float) -> list[JobEvent]:
        """As `after`, and if there are none, what comes next, or nothing after so long or after the end."""
        if not (events := self.after(event_id)) and not self.ended:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._changed.wait()
            events = self.after(event_id)
        return events
