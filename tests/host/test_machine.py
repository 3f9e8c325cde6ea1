"""Facts of the machine: a container's limit counts, and a driver that is absent has no GPUs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from minitron_trt.errors import OutputError
from minitron_trt.host import machine
from minitron_trt.host.machine import (
    LocalGpu,
    available_bytes,
    cache_home,
    local_gpus,
    memory_bytes,
)


@pytest.fixture
def limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file in place of the one where a container's limit stands; there is none yet."""
    monkeypatch.setattr(machine, "_CGROUP_LIMIT", tmp_path / "memory.max")
    return tmp_path / "memory.max"


def test_memory_is_the_machines_without_a_container(limit: Path) -> None:
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


@pytest.mark.parametrize("text", ["max\n", ""])
def test_a_container_may_have_no_limit(text: str, limit: Path) -> None:
    total = memory_bytes()
    limit.write_text(text)

    assert memory_bytes() == total


def test_a_containers_limit_counts_for_all_memory_and_for_what_is_free(limit: Path) -> None:
    limit.write_text("1000000\n")

    assert (memory_bytes(), available_bytes()) == (1000000, 1000000)


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
