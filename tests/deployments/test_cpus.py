"""How many CPUs a replica may use, read from files as kernels and container runtimes write them."""

import os
from pathlib import Path

import pytest

from deployments.cpus import available_cpus, cpu_quota

V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = (
    "31 23 0:28 / /sys/fs/cgroup ro,nosuid,nodev,noexec - tmpfs tmpfs ro,mode=755\n"
    "32 31 0:29 {top} /sys/fs/cgroup/cpu,cpuacct ro,relatime master:15 - cgroup cgroup rw,cpu,cpuacct\n"
    "33 31 0:31 {top} /sys/fs/cgroup/cpuset ro,relatime master:17 - cgroup cgroup rw,cpuset\n"
    "34 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
)


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_quota_of_a_container_counts(tmp_path: Path) -> None:
    files = {
        "proc/self/mountinfo": V2_MOUNT,
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/cpu.max": "150000 100000\n",
    }
    write(tmp_path, files)
    assert cpu_quota(tmp_path) == 1.5
    assert available_cpus(tmp_path) == 1


def test_the_smallest_quota_of_the_groups_above_counts(tmp_path: Path) -> None:
    files = {
        "proc/self/mountinfo": V2_MOUNT,
        "proc/self/cgroup": "0::/user.slice/service.scope/job\n",
        "sys/fs/cgroup/user.slice/cpu.max": "300000 100000\n",
        "sys/fs/cgroup/user.slice/service.scope/cpu.max": "50000 100000\n",
        "sys/fs/cgroup/user.slice/service.scope/job/cpu.max": "max 100000\n",
    }
    write(tmp_path, files)
    assert cpu_quota(tmp_path) == 0.5
    assert available_cpus(tmp_path) == 1


def test_the_quota_of_version_1_counts(tmp_path: Path) -> None:
    files = {
        "proc/self/mountinfo": V1_MOUNTS.format(top="/"),
        "proc/self/cgroup": "5:cpuset:/\n4:cpu,cpuacct:/jobs\n0::/\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu,cpuacct/jobs/cpu.cfs_quota_us": "120000\n",
        "sys/fs/cgroup/cpu,cpuacct/jobs/cpu.cfs_period_us": "40000\n",
    }
    write(tmp_path, files)
    assert cpu_quota(tmp_path) == 3.0


@pytest.mark.parametrize("top", ["/docker/abc", "/"])
def test_a_container_that_reads_its_hosts_path_finds_its_own_quota(tmp_path: Path, top: str) -> None:
    files = {
        "proc/self/mountinfo": V1_MOUNTS.format(top=top),
        "proc/self/cgroup": "4:cpu,cpuacct:/docker/abc\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    }
    write(tmp_path, files)
    assert cpu_quota(tmp_path) == 0.5


@pytest.mark.parametrize("text", ["max 100000\n", "", "no numbers here\n"])
def test_without_a_quota_every_cpu_of_the_process_counts(tmp_path: Path, text: str) -> None:
    write(tmp_path, {"proc/self/mountinfo": V2_MOUNT, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": text})
    assert cpu_quota(tmp_path) is None
    assert available_cpus(tmp_path) == len(os.sched_getaffinity(0))


def test_where_no_groups_are_shown_every_cpu_counts(tmp_path: Path) -> None:
    assert available_cpus(tmp_path) == len(os.sched_getaffinity(0))
    write(tmp_path, {"proc/self/mountinfo": "unreadable\n", "proc/self/cgroup": "0::/\n"})
    assert available_cpus(tmp_path) == len(os.sched_getaffinity(0))


def test_a_quota_above_the_cpus_of_the_process_adds_none(tmp_path: Path) -> None:
    files = {"proc/self/mountinfo": V2_MOUNT, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "9900000 100000\n"}
    write(tmp_path, files)
    assert available_cpus(tmp_path) == len(os.sched_getaffinity(0))
