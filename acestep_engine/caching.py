"""A cache of what was used lately, bounded by number and by bytes."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LruCache(Generic[K, V]):
    """The `size` most recently used entries, of at most `most_bytes` together. Safe between threads.

    `bytes_of` answers what an entry takes. One that is larger than `most_bytes` is not kept.
    """

    def __init__(self, size: int, most_bytes: int = 0, bytes_of: Callable[[V], int] = lambda value: 0) -> None:
        self._size = size
        self._most_bytes = most_bytes
        self._bytes_of = bytes_of
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._nbytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def get(self, key: K) -> V | None:
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)

    def put(self, key: K, value: V) -> None:
        with self._lock:
            if key in self._entries:
                self._nbytes -= self._bytes_of(self._entries.pop(key))
            nbytes = self._bytes_of(value)
            if nbytes > self._most_bytes:
                return
            self._entries[key] = value
            self._nbytes += nbytes
            while len(self._entries) > self._size or self._nbytes > self._most_bytes:
                _, dropped = self._entries.popitem(last=False)
                self._nbytes -= self._bytes_of(dropped)

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self._nbytes = 0
