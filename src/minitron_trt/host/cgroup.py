"""What the control groups of this process leave it: `docker --cpus`, a Pod's limits, systemd's.

Version 2 has one tree for all controllers, version 1 one for each. A limit holds for all groups
below it; in a container the tree mostly begins with the container's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

_ROOT: Final = Path("/sys/fs/cgroup")
_OWN: Final = Path("/proc/self/cgroup")
# Limit, use, and what of the use is given back when memory is short: files that were read.
_MEMORY: Final = (
    ("memory.max", "memory.current", ("active_file", "inactive_file")),
    (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_active_file", "total_inactive_file"),
    ),
)


def memory_limit() -> int | None:
    """Return the bytes that this process's groups may have at most; None without a limit."""
    return min((limit for limit, _ in _memory()), default=None)


def memory_left() -> int | None:
    """Return the bytes that its groups may still take; None without a limit."""
    return min((max(0, limit - used) for limit, used in _memory()), default=None)


def core_quota() -> float | None:
    """Return the cores whose time its groups may use, as docker's --cpus; None without a quota."""
    quotas = []
    for group in _groups("cpu"):
        both = _text(group / "cpu.max").split() or [
            _text(group / f"cpu.cfs_{name}_us") for name in ("quota", "period")
        ]
        # A quota is `max` or -1 where there is none.
        if len(both) == 2 and all(word.isdecimal() and int(word) for word in both):
            quotas.append(int(both[0]) / int(both[1]))
    return min(quotas, default=None)


def _memory() -> Iterator[tuple[int, int]]:
    """Yield limit and use of every group that has a limit."""
    for group in _groups("memory"):
        for limit, current, reclaimed in _MEMORY:
            if (most := _text(group / limit)).isdecimal():
                lines = (line.split() for line in _text(group / "memory.stat").splitlines())
                files = sum(int(words[1]) for words in lines if words[:1] and words[0] in reclaimed)
                yield int(most), max(0, int(_text(group / current) or 0) - files)


def _groups(controller: str) -> Iterator[Path]:
    """Yield the folders of a controller's groups that hold this process, from its own to the root.

    Without a namespace of its own, a container's path is the machine's, of which only the root is
    there to be read.
    """
    for line in _text(_OWN).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        names = [name for name in PurePosixPath(path).parts[1:] if name != ".."]
        for depth in range(len(names), -1, -1):
            yield (_ROOT / controller if controllers else _ROOT).joinpath(*names[:depth])


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
