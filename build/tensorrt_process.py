"""The worker's process, owned: its log is passed on, its memory watched, its end explained."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Final

from minitron_trt.build.tensorrt_worker import Request
from minitron_trt.errors import ProcessError

_SAMPLE_S: Final = 0.05
_STOP_S: Final = 5.0

log = logging.getLogger(__name__)


def run_worker(request: Request, timeout_s: float | None) -> tuple[str, int]:
    """Run the worker; return the builder's version and the worker's peak private memory.

    ProcessError when it failed, crashed, was killed or was not done in time.
    """
    # -P: what lies in the current folder must not stand for a module.
    module = "minitron_trt.build.tensorrt_worker"
    argv = [sys.executable, "-P", "-m", module, request.to_json()]
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    peak = 0
    with subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        assert process.stdout
        assert process.stderr
        answer: list[str] = []
        readers = [
            threading.Thread(target=_forward, args=(process.stderr,)),
            threading.Thread(target=lambda out: answer.append(out.read()), args=(process.stdout,)),
        ]
        try:
            for reader in readers:
                reader.start()
            while process.poll() is None:
                peak = max(peak, _private_bytes(process.pid))
                if deadline is not None and time.monotonic() > deadline:
                    raise ProcessError(
                        f"tensorrt-rtx did not finish within {timeout_s:g} s; raise --timeout"
                    )
                time.sleep(_SAMPLE_S)
        finally:
            _stop(process)
            for reader in readers:
                reader.join()
    return _version(process.returncode, "".join(answer), peak), peak


def _version(code: int, answer: str, peak: int) -> str:
    """Return the builder's version from the worker's answer; ProcessError when it failed."""
    if code == -signal.SIGKILL:
        raise ProcessError(
            f"tensorrt-rtx was killed when it held {peak / 1e9:.2f} GB, most likely because the "
            "machine ran out of memory; build on one with more"
        )
    if code < 0:
        raise ProcessError(f"tensorrt-rtx crashed with {signal.Signals(-code).name}")
    try:
        record = json.loads(answer)
    except ValueError:
        raise ProcessError(f"tensorrt-rtx ended with {code} and no answer; see -v") from None
    if "error" in record:
        raise ProcessError(f"tensorrt-rtx could not build the engine: {record['error']}")
    return str(record["version"])


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()


def _forward(lines: IO[str]) -> None:
    """Log the worker's lines at their own level; what has none is a crash's own words."""
    levels = logging.getLevelNamesMapping()
    for line in lines:
        name, _, message = line.rstrip("\n").partition("\t")
        if message and name in levels:
            # The reason of a failure is in the exception; here it is a detail.
            log.log(min(levels[name], logging.WARNING), "%s", message)
        else:
            log.debug("%s", line.rstrip("\n"))


def _private_bytes(process: int) -> int:
    """Return a process's memory without the page cache and mapped files."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))
