"""Print the benchmark tables: medians, and ratios of what was taken in this run.

Run it with `make bench`, or a part of it with `python -m benchmarks --only PART`.
"""

import argparse
import platform
from functools import partial

import torch

from acestep_engine.checkpoint import NANO_PATH
from acestep_engine.freed_memory import keep_freed_memory
from acestep_engine.params import ModelSpec
from benchmarks import engine, replicas, service, sizes, streaming, tasks
from benchmarks.threads import apart
from deployments.cpus import available_cpus

PARTS = {
    "engine": engine.print_tables,
    "sizes": sizes.print_tables,
    "service": service.print_tables,
    "replicas": replicas.print_tables,
    "streaming": streaming.print_tables,
    "tasks": tasks.print_tables,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default=str(NANO_PATH), help="a checkpoint folder (the bundled one)")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each figure (5)")
    parser.add_argument("--only", choices=PARTS, help="one of the parts")
    args = parser.parse_args()
    keep_freed_memory()  # as a Generator does
    spec = ModelSpec("bench", args.checkpoint)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"{platform.machine()}, {available_cpus()} CPUs, {device}, torch {torch.__version__}, {args.checkpoint}\n")
    for name, print_tables in PARTS.items():
        if args.only in (None, name):
            apart(available_cpus(), partial(print_tables, spec, args.repeats))  # as a Generator does


if __name__ == "__main__":
    main()
