"""A process that is owned leaves nothing behind and loses no line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.patience import PATIENCE_S, until

from minitron_trt.host.processes import OwnedProcess


def started(program: str, lines: list[str]) -> OwnedProcess:
    """Run a Python program and wait for its first line."""
    process = OwnedProcess([sys.executable, "-c", program], on_line=lines.append)
    until(lambda: lines)
    return process


def is_alive(pid: int) -> bool:
    """Say whether a process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_every_line_of_both_streams_is_passed_on() -> None:
    lines: list[str] = []
    code = "import sys; print('out', flush=True); print('err', file=sys.stderr); sys.exit(3)"
    process = OwnedProcess([sys.executable, "-c", code], on_line=lines.append)
    status = process.wait()
    process.close()

    assert (status, lines) == (3, ["out", "err"])


def test_close_gives_it_time_to_end() -> None:
    lines: list[str] = []
    process = started(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('ending', flush=True), sys.exit()))\n"
        "print('up', flush=True); time.sleep(100)",
        lines,
    )

    assert process.close(PATIENCE_S)
    assert lines == ["up", "ending"]


def test_close_kills_what_ignores_it_and_children_in_groups_of_their_own() -> None:
    lines: list[str] = []
    process = started(
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = 'import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(100)'\n"
        "child = subprocess.Popen([sys.executable, '-c', child], process_group=0)\n"
        "print(child.pid, flush=True); time.sleep(100)",
        lines,
    )

    assert len(process.members()) == 2
    assert not process.close(0.2)
    assert process.members() == []
    assert not is_alive(int(lines[0]))


def test_it_is_asked_to_end_when_its_owner_is_killed() -> None:
    owner = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import sys, time\n"
            "from minitron_trt.host.processes import OwnedProcess\n"
            "argv = [sys.executable, '-c', 'import time; time.sleep(100)']\n"
            "print(OwnedProcess(argv, on_line=print).pid, flush=True)\n"
            "time.sleep(100)",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    with owner:
        assert owner.stdout is not None
        owned = int(owner.stdout.readline())
        os.kill(owner.pid, signal.SIGKILL)
    until(lambda: not is_alive(owned))

    assert not is_alive(owned)


def test_a_program_that_is_absent_is_said() -> None:
    lines: list[str] = []
    process = OwnedProcess(["/no/such/program"], on_line=lines.append)
    status = process.wait()
    process.close()

    assert (status, lines) == (
        127,
        ["error: /no/such/program cannot be started: No such file or directory"],
    )
