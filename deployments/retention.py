"""What is kept of ended jobs, and for how long: results for a time and up to a sum of bytes, rows for longer."""

import asyncio
import logging
import time
from collections.abc import Callable, Set
from dataclasses import dataclass

from deployments.messages import StorageError
from deployments.results import JobFiles, Kept
from deployments.store.protocol import JobStore, StoreDeposedError

INTERVAL_S = 60.0
SHORTEST_INTERVAL_S = 1.0  # when there is more than the quota

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class RetentionTerms:
    """`quota_bytes` bounds results, latents and uploads together; None: nothing does.

    The share `disk_reserve` of the disk stays free, but no more than `disk_reserve_bytes`: the oldest results go for
    it, and then nothing is accepted.
    """

    result_ttl_s: float
    row_ttl_s: float
    quota_bytes: int | None = None
    disk_reserve: float = 0.0
    disk_reserve_bytes: int | None = None  # None: the whole share


class Retention:
    """`live` answers the jobs that have not ended, `needed` the files that those begin from."""

    def __init__(
        self,
        store: JobStore,
        files: JobFiles,
        terms: RetentionTerms,
        live: Callable[[], Set[str]],
        needed: Callable[[], Set[str]],
    ) -> None:
        self._store = store
        self._files = files
        self._terms = terms
        self._live = live
        self._needed = needed
        self._over_quota = asyncio.Event()
        self._making_room = asyncio.Lock()
        self._had_none_at = -SHORTEST_INTERVAL_S  # when there was no room last, although all was done

    def note_end(self) -> None:
        """A job has ended, and left its files."""
        quota = self._terms.quota_bytes
        if quota is not None and self._files.kept_bytes > quota:
            self._over_quota.set()

    async def make_room(self, with_output: bool) -> bool:
        """Return whether the disk has room for another song, after the oldest results have gone if need be.

        `with_output` asks for room on the disk of the output folder too. Raises StorageError, OSError.
        """
        clock_now = asyncio.get_running_loop().time
        if not await self._is_short(with_output):
            return True
        async with self._making_room:
            if clock_now() < self._had_none_at + SHORTEST_INTERVAL_S:
                return False
            await self.clean_up(time.time())
            if not await self._is_short(with_output):
                return True
            self._had_none_at = clock_now()
            return False

    async def _is_short(self, with_output: bool) -> bool:
        return await self._shortage_bytes(with_output) > 0

    async def _shortage_bytes(self, with_output: bool) -> int:
        terms = self._terms
        if terms.disk_reserve <= 0:
            return 0
        measure = self._files.shortage_bytes
        return await asyncio.to_thread(measure, terms.disk_reserve, terms.disk_reserve_bytes, with_output)

    async def run(self) -> None:
        """Remove what is no longer to be kept, again and again, until it is cancelled."""
        while True:
            self._over_quota.clear()
            try:
                async with self._making_room:
                    await self.clean_up(time.time())
            except StoreDeposedError as error:
                logger.error("no more results are removed: %s", error)
                return
            except (StorageError, OSError) as error:
                logger.warning("old results could not be removed: %s", error)
            await asyncio.sleep(SHORTEST_INTERVAL_S)
            try:
                async with asyncio.timeout(INTERVAL_S):
                    await self._over_quota.wait()
            except TimeoutError:
                continue

    async def clean_up(self, now: float) -> None:
        """Once. Raises StorageError, OSError."""
        terms = self._terms
        await self._store.expire_results(now - terms.result_ttl_s)
        await self._store.remove_ended(now - terms.row_ttl_s)
        await asyncio.to_thread(self._files.remove_old, now - terms.result_ttl_s, self._needed())
        shortage = await self._shortage_bytes(with_output=False)
        if terms.quota_bytes is not None or shortage > 0:
            await self._give_up_oldest(await asyncio.to_thread(self._files.kept), shortage)

    async def _give_up_oldest(self, kept: list[Kept], shortage: int) -> None:
        """Expire the oldest jobs and uploads until the others fit. The job that was made last stays, however large."""
        quota_bytes, nbytes = self._terms.quota_bytes, sum(one.nbytes for one in kept)
        surplus = 0 if quota_bytes is None else nbytes - quota_bytes
        last = next((one for one in reversed(kept) if one.request_id is not None), None)
        live, needed, chosen = self._live(), self._needed(), []
        for one in kept:
            helps = surplus > 0 or (shortage > 0 and one.freed_bytes > 0)
            if helps and one is not last and one.request_id not in live and not one.files.keys() & needed:
                chosen.append(one)
                surplus -= one.nbytes
                shortage -= one.freed_bytes
        if chosen:
            await self._store.expire([one.request_id for one in chosen if one.request_id is not None])
            await asyncio.to_thread(self._files.remove, chosen)
            logger.info("%d of the oldest results and uploads have expired, to keep within the disk", len(chosen))
