"""The worker's process, owned: its log is passed on, its memory watched, its end explained."""

from __future__ import annotations

import json
import logging
import signal
import sys
import time
from contextlib import ExitStack
from typing import Final

from minitron_trt.build.tensorrt.worker import ANSWER, CompileRequest
from minitron_trt.console import Advance, ShowProgress
from minitron_trt.errors import ProcessError
from minitron_trt.host.processes import OwnedProcess, private_bytes

_SAMPLE_S: Final = 0.05
_STOP_S: Final = 5.0
_LEVELS: Final = logging.getLevelNamesMapping()

log = logging.getLogger(__name__)


class _Watch:
    """What can be seen of a worker from outside: its memory, then the plan that it writes.

    TensorRT's own IProgressMonitor has nothing to add: its phases end within a tenth of a second,
    but for two without steps, in which it copies the weights to its memory.
    """

    def __init__(self, process: int, request: CompileRequest, progress: ShowProgress) -> None:
        self.peak = 0
        self._process, self._plan, self._progress = process, request.plan, progress
        self._weights_bytes = request.weights_bytes
        self._shown = ExitStack()
        self._stage, self._done = "", 0
        self._advance: Advance

    def look(self) -> None:
        """Take a sample and show it."""
        held = private_bytes(self._process)
        self.peak = max(self.peak, held)
        written = self._plan.stat().st_size if self._plan.is_file() else 0
        # The compiler's own memory is more than the weights of a small model.
        stage, done = ("write", written) if written else ("compile", held)
        done = min(done, self._weights_bytes)
        if stage != self._stage:
            self._shown.close()
            self._advance = self._shown.enter_context(self._progress(stage, self._weights_bytes))
            self._stage, self._done = stage, 0
        self._advance(max(done - self._done, 0))
        self._done = max(done, self._done)

    def close(self) -> None:
        """Show nothing more."""
        self._shown.close()


def run_worker(
    request: CompileRequest, timeout_s: float | None, progress: ShowProgress
) -> tuple[str, int]:
    """Run the worker; return the builder's version and the worker's peak private memory.

    ProcessError when it failed, crashed, was killed or was not done in time.
    """
    # -P: what lies in the current folder must not stand for a module.
    module = "minitron_trt.build.tensorrt.worker"
    argv = [sys.executable, "-P", "-m", module, request.to_json()]
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    lines = _Lines()
    process = OwnedProcess(argv, on_line=lines.add)
    watch = _Watch(process.pid, request, progress)
    try:
        while (code := process.poll()) is None:
            watch.look()
            if deadline is not None and time.monotonic() > deadline:
                raise ProcessError(
                    f"{request.library} did not finish within {timeout_s:g} s; raise --timeout"
                )
            time.sleep(_SAMPLE_S)
    finally:
        watch.close()
        process.close(_STOP_S)
    return _version(request.library, code, lines.answer, watch.peak), watch.peak


class _Lines:
    """A worker's lines as they come: its log is passed on, its answer kept."""

    def __init__(self) -> None:
        self.answer = ""

    def add(self, line: str) -> None:
        """Log the next line at its own level; what has none is a crash's own words."""
        name, _, message = line.partition("\t")
        if name == ANSWER:
            self.answer = message
        elif message and name in _LEVELS:
            # The reason of a failure is in the exception; here it is a detail.
            log.log(min(_LEVELS[name], logging.WARNING), "%s", message)
        elif line:
            log.debug("%s", line)


def _version(library: str, code: int, answer: str, peak: int) -> str:
    """Return the builder's version from the worker's answer; ProcessError when it failed."""
    if code == -signal.SIGKILL:
        raise ProcessError(
            f"{library} was killed when it held {peak / 1e9:.2f} GB, most likely because the "
            "machine ran out of memory; build on one with more"
        )
    if code < 0:
        raise ProcessError(f"{library} crashed with {signal.Signals(-code).name}")
    try:
        record = json.loads(answer)
    except ValueError:
        raise ProcessError(f"{library} ended with {code} and no answer; see -v") from None
    if "error" in record:
        raise ProcessError(f"{library} could not build the engine: {record['error']}")
    return str(record["version"])
