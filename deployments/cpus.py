"""How many CPUs a replica may use."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/")


@dataclass(frozen=True)
class _Mount:
    """Where a hierarchy of control groups is mounted, and which of its groups is the top there."""

    point: PurePosixPath
    top: PurePosixPath
    version: int


def available_cpus(root: Path = ROOT) -> int:
    """Return the CPUs that this process may run on, within the quota of its control groups; at least 1.

    `root` is where /proc and /sys are.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(root)
    # A part of a CPU makes no thread: one thread more than the quota would have all of them stopped in every period.
    return cpus if quota is None else max(1, min(cpus, int(quota)))


def cpu_quota(root: Path = ROOT) -> float | None:
    """Return the CPUs' worth of time that the control groups of this process grant, or None where none has a limit.

    A limit of a group holds for all groups below it, so the smallest one counts. Reads version 1 and version 2.
    """
    quotas = []
    for mount, group in _groups(root):
        # In a container, the path of a group may be that of the host, which cannot be seen; its top is the group then.
        below = group.relative_to(mount.top) if group.is_relative_to(mount.top) else PurePosixPath()
        folder = root / mount.point.relative_to("/")
        for path in (below, *below.parents):
            with suppress(OSError, ValueError):
                quota = _quota_v2(folder / path) if mount.version == 2 else _quota_v1(folder / path)
                if quota is not None:
                    quotas.append(quota)
    return min(quotas, default=None)


def _quota_v2(folder: Path) -> float | None:
    """Return the quota of `cpu.max`: "max 100000" or "50000 100000"."""
    quota, period = (folder / "cpu.max").read_text().split()
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(folder: Path) -> float | None:
    """Return the quota of `cpu.cfs_quota_us`, which is -1 for none."""
    quota_us = int((folder / "cpu.cfs_quota_us").read_text())
    return None if quota_us <= 0 else quota_us / int((folder / "cpu.cfs_period_us").read_text())


def _groups(root: Path) -> Iterator[tuple[_Mount, PurePosixPath]]:
    """Yield this process's groups that may limit its CPU time, each with the mount that shows it."""
    try:
        mounts = [mount for line in _lines(root, "mountinfo") if (mount := _mount(line)) is not None]
        for line in _lines(root, "cgroup"):
            number, controllers, group = line.split(":", 2)
            version = 2 if number == "0" and not controllers else 1
            if version == 2 or "cpu" in controllers.split(","):
                yield from ((mount, PurePosixPath(group)) for mount in mounts if mount.version == version)
    except (OSError, ValueError):
        return  # no Linux, or none that shows its groups


def _lines(root: Path, name: str) -> list[str]:
    return (root / "proc" / "self" / name).read_text().splitlines()


def _mount(line: str) -> _Mount | None:
    """Return the mount of a line of `mountinfo` if it shows groups that may limit CPU time."""
    before, _, behind = line.partition(" - ")
    top, point = before.split(" ")[3:5]
    kind, _, options = behind.split(" ", 2)
    if kind == "cgroup2":
        return _Mount(PurePosixPath(point), PurePosixPath(top), 2)
    if kind == "cgroup" and "cpu" in options.split(","):
        return _Mount(PurePosixPath(point), PurePosixPath(top), 1)
    return None
