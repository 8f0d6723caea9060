"""Windows of one length that cover a song, and their context."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from acestep_engine.model.windows import equal_windows, with_halo


@given(start=st.integers(0, 1_000), length=st.integers(1, 5_000), longest=st.integers(1, 1_000))
def test_windows_of_one_length_cover_everything_in_order(start: int, length: int, longest: int) -> None:
    windows = equal_windows(start, start + length, longest)

    assert windows[0][0] == start
    assert windows[-1][1] == start + length
    assert len({stop - first for first, stop in windows}) == 1
    assert windows[0][1] - start <= longest
    for before, after in pairwise(windows):
        assert before[0] < after[0] <= before[1] < after[1]


@given(length=st.integers(1, 5_000), longest=st.integers(1, 1_000))
def test_there_are_no_more_windows_than_needed_and_they_overlap_by_less_than_one_each(
    length: int, longest: int
) -> None:
    windows = equal_windows(0, length, longest)

    assert (len(windows) - 1) * longest < length
    assert sum(stop - start for start, stop in windows) - length < len(windows)


@given(length=st.integers(1, 5_000), longest=st.integers(1, 100), multiple=st.sampled_from([1, 2, 8]))
def test_a_length_may_have_to_be_a_multiple(length: int, longest: int, multiple: int) -> None:
    windows = equal_windows(0, length, longest * multiple, multiple)

    assert len(windows) == 1 or all((stop - start) % multiple == 0 for start, stop in windows)
    assert max(stop - start for start, stop in windows) <= longest * multiple
    assert windows[0][0] == 0
    assert windows[-1][1] == length
    assert all(after[0] <= before[1] for before, after in pairwise(windows))


@given(data=st.data(), length=st.integers(1, 500), halo=st.integers(0, 100))
def test_a_halo_is_whole_or_reaches_to_the_end_and_windows_stay_of_one_length(
    data: st.DataObject, length: int, halo: int
) -> None:
    start = data.draw(st.integers(0, length - 1))
    stop = data.draw(st.integers(start + 1, length))

    first, last = with_halo(start, stop, halo, length)

    assert 0 <= first <= max(0, start - halo)
    assert min(stop + halo, length) <= last <= length
    assert last - first == min(stop - start + 2 * halo, length)
