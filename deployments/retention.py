"""What is kept of ended jobs, and for how long: results for a time and up to a sum of bytes, rows for longer."""

import asyncio
import logging
import time
from collections.abc import Callable, Set
from dataclasses import dataclass

from deployments.messages import StorageError
from deployments.results import JobFiles, KeptJob
from deployments.store.protocol import JobStore, StoreDeposedError

INTERVAL_S = 60.0
SHORTEST_INTERVAL_S = 1.0  # when there is more than the quota

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class RetentionTerms:
    """`quota_bytes` bounds results and latents together; None: nothing does."""

    result_ttl_s: float
    row_ttl_s: float
    quota_bytes: int | None = None


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

    def note_end(self) -> None:
        """A job has ended, and left its files."""
        quota = self._terms.quota_bytes
        if quota is not None and self._files.kept_bytes > quota:
            self._over_quota.set()

    async def run(self) -> None:
        """Remove what is no longer to be kept, again and again, until it is cancelled."""
        while True:
            self._over_quota.clear()
            try:
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
        if terms.quota_bytes is not None:
            await self._keep_to(terms.quota_bytes, await asyncio.to_thread(self._files.kept_jobs))

    async def _keep_to(self, quota_bytes: int, kept: list[KeptJob]) -> None:
        """Expire the oldest jobs until the others fit. What was made last stays, however large."""
        surplus = sum(job.nbytes for job in kept) - quota_bytes
        live, needed, chosen = self._live(), self._needed(), []
        for job in kept[:-1]:
            if surplus > 0 and job.request_id not in live and not job.files.keys() & needed:
                chosen.append(job)
                surplus -= job.nbytes
        if chosen:
            await self._store.expire([job.request_id for job in chosen])
            await asyncio.to_thread(self._files.remove_jobs, chosen)
            logger.info("%d of the oldest results have expired: there was more than %d bytes", len(chosen), quota_bytes)
