"""Makes the callbacks of jobs that have ended: in the background, at least once each, also over restarts."""

import asyncio
import dataclasses
import logging
import time
from dataclasses import dataclass
from typing import Any

from deployments.callbacks import (
    AT_ONCE,
    RETRY_DELAYS_S,
    CallbackError,
    CallbackRules,
    Sender,
    next_attempt_at,
)
from deployments.store.patience import until_stored
from deployments.store.protocol import Callback, JobRow, JobStore, StoreDeposedError
from deployments.views import end_event, view_of

logger = logging.getLogger("ray.serve")


@dataclass
class _Delivery:
    """What is left to tell of one job, and what wakes it."""

    callback: Callback
    content: dict[str, Any]
    timer: asyncio.TimerHandle | None = None


class Deliveries:
    """An attempt is counted on the disk before it is made, so that no two carry the same number."""

    def __init__(self, store: JobStore, rules: CallbackRules) -> None:
        self._store = store
        self._sender = Sender(rules)
        self._open: dict[str, _Delivery] = {}  # by job
        self._due: asyncio.Queue[str] = asyncio.Queue()

    async def restore(self) -> None:
        """Take up what an earlier life left. Raises StorageError."""
        for row in await self._store.callbacks():
            self.add(row)

    def add(self, row: JobRow) -> None:
        """Tell of this job, which has ended, if anybody asked for it."""
        if row.callback is not None:
            content = {"type": "job.ended", "request_id": row.request_id, "completed_at": row.completed_at}
            content |= end_event(view_of(row)).data
            self._open[row.request_id] = _Delivery(row.callback, content)
            self._plan(row.request_id)

    def as_it_stands(self, row: JobRow) -> JobRow:
        """The row of a job that has ended, with what is known here of its callback."""
        if row.callback is None:
            return row
        delivery = self._open.get(row.request_id)
        return dataclasses.replace(row, callback=None if delivery is None else delivery.callback)

    async def run(self) -> None:
        """Deliver what is due, a few at a time, until it is cancelled."""
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(AT_ONCE):
                    workers.create_task(self._work())
        except* StoreDeposedError as deposed:
            logger.error("no more callbacks are made: %s", deposed.exceptions[0])
        finally:
            self._sender.close()
            for delivery in self._open.values():
                if delivery.timer is not None:
                    delivery.timer.cancel()

    async def _work(self) -> None:
        while True:
            request_id = await self._due.get()
            await self._attempt(request_id, self._open[request_id])

    def _plan(self, request_id: str) -> None:
        delivery = self._open[request_id]
        wait_s = min(max(0.0, delivery.callback.due - time.time()), RETRY_DELAYS_S[-1])  # whatever the clock did
        delivery.timer = asyncio.get_running_loop().call_later(wait_s, self._due.put_nowait, request_id)

    async def _attempt(self, request_id: str, delivery: _Delivery) -> None:
        attempt = delivery.callback.attempts + 1
        await self._keep(request_id, dataclasses.replace(delivery.callback, attempts=attempt))
        try:
            content = delivery.content | {"attempt": attempt}
            if not await self._sender.deliver(delivery.callback.url, request_id, content):
                logger.info("%s: the receiver of its callback wants no more", request_id)
            due = None
        except CallbackError as error:
            due = self._judge(request_id, attempt, str(error))
        except Exception:
            logger.exception("%s: its callback failed in a way nobody foresaw", request_id)
            due = self._judge(request_id, attempt, "it failed in a way nobody foresaw")
        if due is None:
            await self._keep(request_id, None)
        else:
            await self._keep(request_id, dataclasses.replace(delivery.callback, due=due))
            self._plan(request_id)

    @staticmethod
    def _judge(request_id: str, attempt: int, problem: str) -> float | None:
        """When to try again after an attempt that failed; None if it is given up."""
        due = next_attempt_at(attempt, time.time())
        if due is None:
            logger.error("%s: its callback is given up after %d attempts: %s", request_id, attempt, problem)
        else:
            logger.warning("%s: its callback failed in attempt %d: %s", request_id, attempt, problem)
        return due

    async def _keep(self, request_id: str, callback: Callback | None) -> None:
        """Remember how far a callback is; None: it is over."""
        await until_stored(lambda: self._store.set_callback(request_id, callback))
        if callback is None:
            del self._open[request_id]
        else:
            self._open[request_id].callback = callback
