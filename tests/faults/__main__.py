"""Stages the faults and prints the table: `python -m tests.faults [--quick] [part of a fault's name ...]`."""

import argparse
import sys

from tests.faults import disks, inside, load, nodes, processes, scaling, stores
from tests.faults.campaign import HEAD, run

FAULTS = [
    *processes.FAULTS,
    *disks.FAULTS,
    *inside.FAULTS,
    *stores.FAULTS,
    *nodes.FAULTS,
    *scaling.FAULTS,
    *load.FAULTS,
]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="each fault once, and a smaller load")
    parser.add_argument("names", nargs="*", help="only faults whose names contain one of these")
    given = parser.parse_args()
    chosen = [fault for fault in FAULTS if not given.names or any(part in fault.name for part in given.names)]
    if given.quick:
        chosen = [fault for fault in chosen if fault is not load.FULL]
    elif not given.names:
        chosen = [fault for fault in chosen if fault is not load.QUICK]
    records = run(chosen, times=1 if given.quick else None)
    print(HEAD)
    for record in records:
        print(record.row())
    return 0 if all(record.is_good for record in records) else 1


if __name__ == "__main__":
    sys.exit(main())
