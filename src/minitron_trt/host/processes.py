"""Programs that this one starts and owns: a session each, read to the end, never left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

_DIE_WITH_PARENT: Final = Path(__file__).with_name("die_with_parent.py")
_KILL_S: Final = 10.0  # a process inside a driver's call takes its time to die
_LOOK_S: Final = 0.01
# Fields of /proc/PID/stat after the name.
_STATE, _SESSION, _USER_TICKS, _SYSTEM_TICKS = 0, 3, 11, 12


def output_of(argv: Sequence[str], timeout_s: float) -> str | None:
    """Return what a program prints; None when it is absent, fails or is not done in time."""
    try:
        result = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout if result.returncode == 0 else None


def private_bytes(pid: int) -> int:
    """Return a process's memory without the page cache and mapped files; 0 when it has gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def processor_ticks(pids: Iterable[int]) -> int | None:
    """Return what processes that still run have used of the processor; None when none does."""
    ticks = [used for pid in pids if (used := _ticks(pid)) is not None]
    return sum(ticks) if ticks else None


class OwnedProcess:
    """A running program and all that it started; it gets SIGTERM when this process dies.

    Its output, both streams together, is passed on line by line from a thread. `close` must be
    called; afterwards every line has been passed on.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        on_line: Callable[[str], None],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(_DIE_WITH_PARENT), str(os.getpid()), *argv],
            env=None if environment is None else dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._on_line = on_line
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Return the program's id, also that of its session."""
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait for the end and return the exit status; None when the time was not enough."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout_s)
        return None

    def members(self) -> list[int]:
        """Return the ids of what runs in its session."""
        return [pid for pid, session in _running() if session == self.pid]

    def ask_to_end(self) -> None:
        """Send SIGTERM to the program itself, which knows what to do with those it started."""
        if self.poll() is None:
            self._process.terminate()

    def close(self, grace_s: float = 0.0) -> bool:
        """End it: SIGTERM, some seconds to follow it, then SIGKILL to all of the session.

        Returns whether it followed in time. An interrupt in those seconds, like a second Ctrl-C,
        ends them.
        """
        followed = False
        try:
            self.ask_to_end()
            followed = self.wait(grace_s) is not None
        except KeyboardInterrupt:
            pass
        finally:
            self._kill()
            self._process.wait()
            self._reader.join()
        return followed

    def _kill(self) -> None:
        # mpirun gives each rank a process group, so the group of the program is not enough. What
        # is killed while it forks may leave a child: until nothing is found.
        deadline = time.monotonic() + _KILL_S
        while (members := self.members()) and time.monotonic() < deadline:
            for pid in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_LOOK_S)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._on_line(line.rstrip("\n"))


def is_running(pid: int) -> bool:
    """Return whether there is a process of this id that is no zombie."""
    return _session(pid) is not None


def _running() -> Iterator[tuple[int, int]]:
    """Yield id and session of every process that is no zombie."""
    for path in Path("/proc").glob("[0-9]*"):
        pid = int(path.name)
        if (session := _session(pid)) is not None:
            yield pid, session


def _session(pid: int) -> int | None:
    """Return the session of a process, None for a zombie and for what has gone."""
    fields = _fields(pid)
    return int(fields[_SESSION]) if fields else None


def _ticks(pid: int) -> int | None:
    fields = _fields(pid)
    return int(fields[_USER_TICKS]) + int(fields[_SYSTEM_TICKS]) if fields else None


def _fields(pid: int) -> list[str] | None:
    """Return what /proc says of a process after its name, None for a zombie and what has gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        fields = text.rpartition(")")[2].split()
        return None if fields[_STATE] in "ZX" else fields
    return None
