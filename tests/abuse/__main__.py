"""Misbehaves towards a server of its own and prints the table: `python -m tests.abuse [--quick] [part of a name]`."""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.abuse.campaign import HEAD, run
from tests.abuse.cases import CASES
from tests.e2e.server import serving

QUICK_AMOUNT = 0.1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.abuse", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of each case")
    parser.add_argument("names", nargs="*", help="only cases whose names contain one of these")
    given = parser.parse_args()
    chosen = [case for case in CASES if not given.names or any(part in case.name for part in given.names)]
    records = []
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as server:
        print(HEAD, flush=True)
        state = Path(folder) / ".acestep"
        for record in run(chosen, server.url, server.pid, state, QUICK_AMOUNT if given.quick else 1.0):
            records.append(record)
            print(record.row(), flush=True)
        log = (Path(folder) / "log").read_text(errors="replace")
    tracebacks = log.count("Traceback")
    print(f"tracebacks in the log: {tracebacks}")
    return 0 if all(record.is_good for record in records) and not tracebacks else 1


if __name__ == "__main__":
    sys.exit(main())
