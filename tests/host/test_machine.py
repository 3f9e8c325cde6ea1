"""Facts of the machine: a container's limit counts, and a driver that is absent has no GPUs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from minitron_trt.errors import OutputError
from minitron_trt.host import cgroup
from minitron_trt.host.machine import (
    LocalGpu,
    available_bytes,
    cache_home,
    local_gpus,
    memory_bytes,
    usable_cores,
)

Groups = Callable[..., None]


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Groups:
    """Return a writer of control groups, in place of this machine's; there are none yet."""
    monkeypatch.setattr(cgroup, "_ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(cgroup, "_OWN", tmp_path / "own")

    def write(own: str, files: dict[str, str]) -> None:
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


@pytest.mark.usefixtures("groups")
def test_memory_is_the_machines_without_a_container() -> None:
    lines = Path("/proc/meminfo").read_text().splitlines()
    total = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemTotal:"))

    assert memory_bytes() == total
    assert 0 < available_bytes() <= total


def test_a_user_without_a_home_is_told_where_to_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 1)

    with pytest.raises(OutputError, match=r"this user has no home folder .*; set XDG_CACHE_HOME"):
        cache_home()


V2 = "0::/\n"
V1 = "5:cpu,cpuacct:/docker/a\n4:memory:/docker/a\n0::/\n"
NO_LIMIT = {
    "none": (V2, {}),
    "v2": (V2, {"memory.max": "max\n", "memory.current": "5\n", "cpu.max": "max 100000\n"}),
    "v1": (
        V1,
        {
            "memory/memory.limit_in_bytes": "9223372036854771712\n",
            "cpu/cpu.cfs_quota_us": "-1\n",
            "cpu/cpu.cfs_period_us": "100000\n",
        },
    ),
    "empty": (V2, {"memory.max": "", "cpu.max": ""}),
}


@pytest.mark.parametrize("case", NO_LIMIT)
def test_a_container_may_have_no_limit(case: str, groups: Groups) -> None:
    total, cores = memory_bytes(), len(os.sched_getaffinity(0))
    groups(*NO_LIMIT[case])

    assert (memory_bytes(), usable_cores()) == (total, cores)
    assert available_bytes() > 10**6


# What its groups say, all of its memory, what is left of that, and its cores of eight.
LIMITS = {
    "v2 in a container": (
        V2,
        {
            "memory.max": "1000000\n",
            "memory.current": "700000\n",
            # What was read of files is given back.
            "memory.stat": "anon 400000\nactive_file 100000\ninactive_file 200000\n",
            "cpu.max": "150000 100000\n",
        },
        (1000000, 600000, 2),
    ),
    "v2 around a group": (
        "0::/pod/own\n",
        {
            "pod/own/memory.max": "900000\n",
            "pod/memory.max": "1000000\n",
            "pod/memory.current": "800000\n",
            "pod/cpu.max": "300000 100000\n",
            "pod/own/cpu.max": "max 100000\n",
        },
        (900000, 200000, 3),
    ),
    "v2 beyond a namespace": ("0::/../../own\n", {"own/memory.max": "7\n"}, (7, 7, 8)),
    "v1 with a container's tree": (
        V1,
        {
            "memory/memory.limit_in_bytes": "1000000\n",
            "memory/memory.usage_in_bytes": "500000\n",
            "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 100000\n",
            "cpu/cpu.cfs_quota_us": "50000\n",
            "cpu/cpu.cfs_period_us": "100000\n",
        },
        (1000000, 600000, 1),
    ),
    "v1 with the machine's tree": (
        V1,
        {
            "memory/memory.limit_in_bytes": "9223372036854771712\n",
            "memory/docker/a/memory.limit_in_bytes": "1000000\n",
            "memory/docker/a/memory.usage_in_bytes": "2000000\n",
        },
        (1000000, 0, 8),
    ),
}


@pytest.mark.parametrize("case", LIMITS)
def test_a_containers_limits_are_heeded(
    case: str, groups: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    own, files, expected = LIMITS[case]
    groups(own, files)

    assert (memory_bytes(), available_bytes(), usable_cores()) == expected


@pytest.mark.parametrize(
    ("says", "gpus"),
    [
        (
            "echo 'NVIDIA L4, 8.9'; echo 'NVIDIA H100, 9.0'",
            (("NVIDIA L4", 89), ("NVIDIA H100", 90)),
        ),
        ("echo 'Insufficient Permissions'", ()),
        ("echo 'NVIDIA L4, 8.9'; exit 9", ()),
        (None, ()),
    ],
    ids=["two", "no list", "fails", "no driver"],
)
def test_gpus_are_what_the_driver_lists(
    says: str | None,
    gpus: tuple[tuple[str, int], ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if says is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{says}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)

    assert local_gpus() == tuple(LocalGpu(name, sm) for name, sm in gpus)
