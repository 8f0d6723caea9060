"""What the tests stop: `python stage_runner.py FOLDER` runs two stages, of which the first waits until it is ended."""

import signal
import sys
from dataclasses import dataclass

from training.nano.stages import Stage, run_stages

SAVE_WHEN_ENDED = """
import signal, sys, time
from pathlib import Path

def save(number, frame):
    time.sleep(0.5)
    with (Path(sys.argv[1]) / "saved").open("a") as file:
        file.write("once")
    sys.exit(128 + number)

signal.signal(signal.SIGTERM, save)
(Path(sys.argv[1]) / "ready").touch()
while True:
    time.sleep(1)
"""
LEAVE_A_MARK = "import sys, pathlib; (pathlib.Path(sys.argv[1]) / 'second').touch()"


@dataclass(frozen=True)
class Script(Stage):
    """A stage of Python text."""

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-c", *self.arguments]


if __name__ == "__main__":
    folder = sys.argv[1]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a test in the background is started without
    run_stages([Script("first", "", (SAVE_WHEN_ENDED, folder)), Script("second", "", (LEAVE_A_MARK, folder))])
