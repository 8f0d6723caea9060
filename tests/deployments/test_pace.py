import pytest

from deployments.pace import Pace


def after(ends: list[tuple[float, float]]) -> Pace:
    pace = Pace()
    for started_s, ended_s in ends:
        pace.note(started_s, ended_s)
    return pace


def test_jobs_one_after_the_other_take_their_own_time_each() -> None:
    pace = after([(10.0 * i, 10.0 * i + 10.0) for i in range(100)])
    assert pace.wait_s(3) == pytest.approx(30.0, rel=0.01)


def test_jobs_that_share_replicas_end_more_often() -> None:
    """Four at a time of ten seconds each."""
    pace = after([(2.5 * i, 2.5 * i + 10.0) for i in range(100)])
    assert pace.wait_s(4) == pytest.approx(10.0, rel=0.01)


def test_idle_time_is_no_pace() -> None:
    pace = after([(3600.0 * i, 3600.0 * i + 5.0) for i in range(100)])
    assert pace.wait_s(1) == pytest.approx(5.0, rel=0.01)


def test_a_wait_is_never_less_than_a_second() -> None:
    assert after([(0.0, 0.0)] * 100).wait_s(1) == 1.0
