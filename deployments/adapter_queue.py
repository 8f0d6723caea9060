"""Calls whose adapter is not on the device yet: it is loaded beside the songs that run."""

from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import torch

from acestep_engine.adapters import AdapterShelf
from acestep_engine.devices import free_memory
from acestep_engine.model.low_rank import PlacedAdapter
from acestep_engine.params import Adapter, GenerationParams
from deployments.failures import GpuMemoryError


class CallLike(Protocol):
    """What waits here."""

    call_id: str
    params: GenerationParams


C = TypeVar("C", bound=CallLike)


@dataclass(frozen=True)
class _Loading:
    shelf: AdapterShelf
    adapter: Adapter
    placed: "Future[PlacedAdapter]"
    is_last_attempt: bool = False


class AdapterQueue(Generic[C]):
    """For the engine's thread, but for the loading, which has a thread of its own. `wake` runs in that one."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._waiting: list[C] = []
        self._loading: _Loading | None = None  # one at a time
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="adapters")

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def has_news(self) -> bool:
        """Whether `advance` has something to do: a loading has ended, or none goes on for those that wait.

        They may have waited for room, and the songs that took it may all have ended in one step.
        """
        return bool(self._waiting) if self._loading is None else self._loading.placed.done()

    def add(self, call: C) -> None:
        self._waiting.append(call)

    def drop(self, call_ids: Collection[str]) -> None:
        """These wait no more."""
        self._waiting = [call for call in self._waiting if call.call_id not in call_ids]

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def advance(
        self, shelf: AdapterShelf, begin: Callable[[C], None], fail: Callable[[C, BaseException], None]
    ) -> None:
        """Begin all whose adapter is there, fail those whose adapter cannot be had, have the next one loaded.

        Where songs use as many adapters as there is room for, whoever comes behind the first that has to wait for room
        waits too: else the adapters in use would never get fewer.
        """
        self._take_loaded(shelf, fail)
        for call in [*self._waiting]:
            adapter = call.params.active_adapter
            assert adapter is not None
            if adapter in shelf:
                self._waiting.remove(call)
                begin(call)
            elif self._loading is None:
                if not shelf.make_room():
                    return
                self._loading = self._load(shelf, adapter)

    def _load(self, shelf: AdapterShelf, adapter: Adapter) -> _Loading:
        placed = self._thread.submit(shelf.loader.load, adapter)
        placed.add_done_callback(lambda _: self._wake())
        return _Loading(shelf, adapter, placed)

    def _take_loaded(self, shelf: AdapterShelf, fail: Callable[[C, BaseException], None]) -> None:
        loading = self._loading
        if loading is None or not loading.placed.done():
            return
        self._loading = None
        if loading.shelf is not shelf:  # of a model that is there no more
            return
        error = loading.placed.exception()
        if error is None:
            shelf.put(loading.placed.result())
        elif isinstance(error, torch.OutOfMemoryError) and not loading.is_last_attempt:
            shelf.clear_unused()
            free_memory()
            self._loading = replace(self._load(shelf, loading.adapter), is_last_attempt=True)
        else:
            if isinstance(error, torch.OutOfMemoryError):
                error = GpuMemoryError("the adapter does not fit the GPU's memory beside the songs that run")
            for call in [call for call in self._waiting if _same_files(call.params.active_adapter, loading.adapter)]:
                self._waiting.remove(call)
                fail(call, error)


def _same_files(one: Adapter | None, other: Adapter) -> bool:
    """Return whether two adapters are the same, at whatever weights: one loading answers for both."""
    return one is not None and replace(one, weight=other.weight) == other
