"""Run mpirun so that SIGTERM lets the requests finish.

    python3 mpirun_wrapper.py MPIRUN ARGUMENT ...

mpirun answers SIGTERM by ending every rank within a second. Here rank 0, the only one that clients
talk to, gets it first; mpirun follows when rank 0 is gone. This file also runs inside NVIDIA's
container, where minitron-trt is not installed: it imports nothing but the standard library.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

_POLL_S = 0.1
# Fields of /proc/PID/stat after the name.
_STATE, _PARENT, _START = 0, 1, 19


def main(server: str, command: list[str]) -> int:
    """Run the command to its end and return its exit status."""
    signals: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    mpirun = subprocess.Popen(command)
    while mpirun.poll() is None and not signals:
        time.sleep(_POLL_S)
    # Rank 0 was forked first.
    for rank_0 in _descendants(mpirun.pid, server)[:1]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(rank_0, signal.SIGTERM)
        while rank_0 in _descendants(mpirun.pid, server):
            time.sleep(_POLL_S)
    if signals:
        mpirun.terminate()
    return mpirun.wait()


def _descendants(root: int, name: str) -> list[int]:
    """Return the programs of a name that a process started, however deep, oldest first."""
    parents, named = {}, []
    for pid, (its_name, parent, start) in _running().items():
        parents[pid] = parent
        if its_name == name:
            named.append((start, pid))
    return [pid for _, pid in sorted(named) if root in _ancestors(pid, parents)]


def _running() -> dict[int, tuple[str, int, int]]:
    """Return name, parent and start time of every process that is no zombie."""
    processes = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # A name may hold spaces and brackets: the fields come after the last one.
            head, _, tail = path.read_text(errors="replace").rpartition(")")
            fields = tail.split()
            if fields[_STATE] not in "ZX":
                name = head.partition("(")[2]
                processes[int(path.parent.name)] = name, int(fields[_PARENT]), int(fields[_START])
    return processes


def _ancestors(pid: int, parents: dict[int, int]) -> list[int]:
    """Return a process's parent, its parent's parent, and so on."""
    ancestors = []
    while pid in parents:
        pid = parents[pid]
        ancestors.append(pid)
    return ancestors


if __name__ == "__main__":
    sys.exit(main("tritonserver", sys.argv[1:]))
