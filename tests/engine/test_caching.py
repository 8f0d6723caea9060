"""What is kept for later songs stays within bounds, and is given back when the memory is needed."""

import gc
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchaudio.transforms import Resample

from acestep_engine.caching import LruCache
from acestep_engine.model.resampling import KEPT_FILTER_BYTES, Resampler
from acestep_engine.requests import songs_of
from tests.engine.small import small_engine
from tests.engine.wishes import KINDS, alone, assert_same, drain, run

CPU = torch.device("cpu")


def test_the_least_recently_used_entry_goes_first() -> None:
    cache: LruCache[str, int] = LruCache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (1, None, 3)


def test_an_entry_larger_than_the_bound_is_not_kept() -> None:
    cache: LruCache[str, bytes] = LruCache(8, 10, len)
    cache.put("large", bytes(11))
    assert (cache.get("large"), cache.nbytes) == (None, 0)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 12)) | st.none(), max_size=40))
def test_the_bytes_are_those_of_the_entries_and_never_over_the_bound(puts: list[tuple[int, int] | None]) -> None:
    cache: LruCache[int, bytes] = LruCache(4, 20, len)
    for put in puts:
        if put is None:
            cache.clear()
        else:
            cache.put(put[0], bytes(put[1]))
        kept = [value for key in range(6) if (value := cache.get(key)) is not None]
        assert cache.nbytes == sum(map(len, kept)) <= 20
        assert len(cache) == len(kept) <= 4


def kept_filter_bytes() -> int:
    gc.collect()
    filters = [one for one in gc.get_objects() if type(one) is Resample]
    return sum(buffer.nbytes for one in filters for buffer in one.buffers())


def test_sources_at_200_rates_leave_no_more_filters_than_the_bound() -> None:
    before = kept_filter_bytes()
    resampler = Resampler(CPU)
    for rate_hz in range(8_100, 28_100, 100):
        resampler(torch.zeros(2, 100), rate_hz, 44_100)
    assert 0 < kept_filter_bytes() - before <= KEPT_FILTER_BYTES
    for rate_hz in range(12_000, 12_200, 12):  # of the largest filters
        resampler(torch.zeros(2, 100), rate_hz, 44_100)
    assert 0 < kept_filter_bytes() - before <= KEPT_FILTER_BYTES
    resampler.free()
    assert kept_filter_bytes() == before


@pytest.mark.usefixtures("one_thread")
def test_freed_memory_changes_no_song_and_leaves_nothing_kept() -> None:
    engine, wish = small_engine(), replace(KINDS["repaint"], source_seed=9)
    run(engine, {"first": wish})
    caches = [engine.batch._packings, engine.batch._modulations, engine.contexts._lyrics]
    assert all(len(cache) > 0 for cache in caches[1:])
    engine._free_memory()
    assert [len(cache) for cache in caches] == [0, 0, 0]
    wish.add_to(engine, "again")
    engine.step()
    engine._free_memory()  # between its forwards
    assert_same(songs_of(drain(engine))["again"], alone(wish))
