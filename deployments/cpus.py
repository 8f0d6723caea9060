"""How many CPUs a replica may use."""

import os


def available_cpus() -> int:
    """CPUs that this process may run on, at least 1."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
