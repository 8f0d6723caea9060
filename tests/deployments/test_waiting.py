"""Who waits, and who may run next."""

import pytest

from deployments.waiting import WaitingJobs, size_of


def started(waiting: WaitingJobs) -> list[str]:
    """All that may start now."""
    names = []
    while (name := waiting.start_next()) is not None:
        names.append(name)
    return names


@pytest.mark.parametrize(
    ("duration_s", "size_s"), [(1, 15), (15, 15), (15.01, 30), (30, 30), (60, 60), (61, 120), (240, 240), (300, 480)]
)
def test_a_size_is_the_power_of_two_that_covers_a_song(duration_s: float, size_s: float) -> None:
    assert size_of(duration_s) == size_s


def test_songs_of_one_size_start_in_order_as_many_as_may() -> None:
    waiting = WaitingJobs(2)
    for name in "abcd":
        waiting.add(name, 10.0, 1)
    assert started(waiting) == ["a", "b"]
    assert len(waiting) == 2
    waiting.end(10.0)
    assert started(waiting) == ["c"]


def test_long_songs_that_fill_the_server_do_not_hold_up_a_short_one() -> None:
    waiting = WaitingJobs(1)
    for name, duration_s in (("long", 240.0), ("longer", 240.0), ("short", 10.0)):
        waiting.add(name, duration_s, 1)
    assert started(waiting) == ["long", "short"]


def test_short_songs_that_fill_the_server_do_not_hold_up_a_long_one() -> None:
    waiting = WaitingJobs(1)
    for name, duration_s in (("short", 10.0), ("another", 9.0), ("long", 240.0)):
        waiting.add(name, duration_s, 1)
    assert started(waiting) == ["short", "long"]


def test_a_place_is_free_again_for_the_size_that_left_it_only() -> None:
    waiting = WaitingJobs(1)
    for name, duration_s in (("long", 240.0), ("short", 10.0), ("longer", 239.0), ("shorter", 9.0)):
        waiting.add(name, duration_s, 1)
    assert started(waiting) == ["long", "short"]
    waiting.end(9.5)
    assert started(waiting) == ["shorter"]
    waiting.end(240.0)
    assert started(waiting) == ["longer"]


def test_a_job_that_waits_no_more_never_starts() -> None:
    waiting = WaitingJobs(1)
    for name in "abc":
        waiting.add(name, 10.0, 1)
    assert waiting.start_next() == "a"
    waiting.discard("a")  # it runs: nothing happens
    waiting.discard("b")
    waiting.end(10.0)
    assert started(waiting) == ["c"]


def test_a_position_counts_those_that_came_before_and_still_wait() -> None:
    waiting = WaitingJobs(1)
    for name, duration_s in (("a", 10.0), ("b", 10.0), ("c", 240.0), ("d", 240.0)):
        waiting.add(name, duration_s, 1)
    assert [waiting.position(name) for name in "abcd"] == [0, 1, 2, 3]
    assert started(waiting) == ["a", "c"]
    assert [waiting.position(name) for name in "bd"] == [0, 1]
    assert waiting.position("a") == 0


def test_the_songs_of_a_job_start_one_by_one_before_those_of_the_next() -> None:
    waiting = WaitingJobs(2)
    waiting.add("three", 10.0, 3)
    waiting.add("one", 10.0, 1)
    assert started(waiting) == ["three", "three"]
    assert (len(waiting), waiting.position("one")) == (1, 0)
    waiting.end(10.0)
    assert started(waiting) == ["three"]
    waiting.end(10.0)
    assert started(waiting) == ["one"]
    assert len(waiting) == 0


def test_a_job_that_is_over_starts_none_of_its_other_songs() -> None:
    waiting = WaitingJobs(1)
    waiting.add("two", 10.0, 2)
    waiting.add("one", 10.0, 1)
    assert started(waiting) == ["two"]
    waiting.discard("two")
    waiting.end(10.0)
    assert started(waiting) == ["one"]


def test_within_a_size_the_more_urgent_go_first_and_equals_in_order_of_arrival() -> None:
    waiting = WaitingJobs(8)
    for number, (name, priority) in enumerate([("a", 5), ("b", 9), ("c", 0), ("d", 9), ("e", 5)]):
        waiting.add(name, 10.0, 1, priority, float(number))
    assert [waiting.position(name) for name in "bdaec"] == [0, 1, 2, 3, 4]
    assert waiting.by_priority() == {0: 1, 5: 2, 9: 2}
    assert started(waiting) == ["b", "d", "a", "e", "c"]
    assert waiting.by_priority() == {}


def test_nobody_starves_however_many_urgent_ones_come() -> None:
    """One a minute of priority 9 and one place that each of them keeps for a minute."""
    waiting = WaitingJobs(1)
    waiting.add("patient", 10.0, 1, 0, 0.0)
    order = []
    for minute in range(30):
        waiting.add(f"urgent {minute}", 10.0, 1, 9, 60.0 * minute)
        order.append(waiting.start_next())
        waiting.end(10.0)
    assert order.index("patient") == 9  # nine priorities more are worth nine minutes
