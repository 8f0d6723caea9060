"""Makes 1,000 songs of mixed lengths and prints what the Generator takes: `python -m tests.abuse.steady [songs]`."""

import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import requests

from tests.abuse.cases import SONG
from tests.abuse.watch import memory_mib
from tests.e2e.server import serving

AT_ONCE = 8
SONGS_A_ROUND = 100
DURATIONS_S = (1, 2, 3, 5, 7, 10, 16)
FORMATS = ("wav", "mp3", "ogg")
REST_S = 3.0  # until what the last songs took is given back
MOST_GROWTH = 0.1


def rounds(url: str, server_pid: int, songs: int) -> Iterator[float]:
    """Make the songs, and yield the Generator's MiB after each hundred."""
    with ThreadPoolExecutor(AT_ONCE) as clients:
        for first in range(0, songs, SONGS_A_ROUND):
            statuses = {*clients.map(partial(_make, url), range(first, first + SONGS_A_ROUND))}
            assert statuses == {200}, statuses
            time.sleep(REST_S)
            yield memory_mib(server_pid)["Generator"]


def _make(url: str, index: int) -> int:
    wish = {"audio_duration": DURATIONS_S[index % len(DURATIONS_S)], "format": FORMATS[index % len(FORMATS)]}
    return requests.post(f"{url}/generate_music_direct", json=SONG | wish, timeout=600).status_code


def main() -> int:
    songs = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    found: list[float] = []
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as server:
        for mib in rounds(server.url, server.pid, songs):
            found.append(mib)
            print(f"after {len(found) * SONGS_A_ROUND:5d} songs the Generator takes {mib:6.0f} MiB", flush=True)
    growth = found[-1] / found[0] - 1
    print(f"{growth:+.1%} from the first hundred to the last")
    return 0 if growth <= MOST_GROWTH else 1


if __name__ == "__main__":
    sys.exit(main())
