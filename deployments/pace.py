"""How long those who wait will wait, judged by the jobs that have ended lately. Pure."""

FIRST_GUESS_S = 30.0
NEWEST_SHARE = 0.2  # of the newest interval in the average


class Pace:
    """Seconds from one job's end to the next, while there are any: it knows of shared forwards and of many replicas."""

    def __init__(self) -> None:
        self._interval_s = FIRST_GUESS_S
        self._last_end_s = 0.0

    def note(self, started_s: float, ended_s: float) -> None:
        """A job ran from then to then, in Unix seconds; time in which nothing ran does not count."""
        interval_s = max(0.0, ended_s - max(started_s, self._last_end_s))
        self._last_end_s = max(self._last_end_s, ended_s)
        self._interval_s += NEWEST_SHARE * (interval_s - self._interval_s)

    def wait_s(self, jobs: int) -> float:
        """Until so many more have ended, at least a second."""
        return max(1.0, self._interval_s * jobs)
