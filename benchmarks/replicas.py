"""One replica of the Generator against two, over HTTP."""

from statistics import median

import httpx

from acestep_engine.params import ModelSpec
from benchmarks.service import CALLED, SONGS_PER_TURN, one_song_each, running_server
from benchmarks.tables import print_table

REPLICAS = (1, 2)
CALLERS = 8
TURNS = 3  # at most: each starts a server for each number of replicas


def print_tables(spec: ModelSpec, repeats: int) -> None:
    """Servers in turn, so that each has the machine for itself."""
    taken_s: dict[int, list[float]] = {count: [] for count in REPLICAS}
    for _ in range(min(repeats, TURNS)):
        for count, taken in taken_s.items():
            with running_server(spec, replicas=count) as url, httpx.Client(base_url=url, timeout=600.0) as client:
                one_song_each(client, CALLERS, CALLERS)  # warms all of them up
                taken.append(one_song_each(client, CALLERS, SONGS_PER_TURN * CALLERS)[1])
    audio_s = SONGS_PER_TURN * CALLERS * CALLED.duration_s
    rows = []
    for count, taken in taken_s.items():
        ratio = median(one / other for one, other in zip(taken_s[REPLICAS[0]], taken, strict=True))
        rows.append((count, SONGS_PER_TURN * CALLERS * len(taken), audio_s / median(taken), ratio))
    title = f"Songs of {CALLED.duration_s:g} s in {CALLED.steps} steps, {CALLERS} callers, one replica and two"
    print_table(title, ("replicas", "songs", "audio s per s", "ratio"), rows)
