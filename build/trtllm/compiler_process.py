"""Run a compiler: its log followed stage by stage, one deadline, its end in words."""

from __future__ import annotations

import logging
import re
import resource
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Final

from minitron_trt.build.job import BuildJob
from minitron_trt.errors import ProcessError
from minitron_trt.host.processes import OwnedProcess

log = logging.getLogger(__name__)

_STOP_S: Final = 10.0
_KEPT_LINES: Final = 200
# What trtllm-build 1.0 to 1.2 says as it enters each stage, once for every rank.
STAGES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "starting": r"TensorRT-LLM version: ",
        "loading weights, defining the network": r"Set dtype to |MemUsageChange\] Init CUDA",
        "filling in the weights": r"Total time of constructing network from module object ",
        "compiling": r"Build TensorRT engine ",
        "compiled": r"Engine generation completed in ",
        "writing the engine": r"Serializing engine to ",
        "written": r"Engine serialized\. Total time: ",
    }
)
_MEMORY: Final = re.compile(r"Build phase peak memory: ([\d.]+) MB")
_TENSORRT_ERROR: Final = re.compile(r"\[E\]")
_PYTHON_ERROR: Final = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception)\b")
# By the kernel here, or in a container, whose client returns 128 and the signal.
_KILLED: Final = frozenset({-signal.SIGKILL, 128 + signal.SIGKILL})
Explain = Callable[[int, str], str | None]
"""Say what an exit status and the last lines of a log mean; None leaves it to the default."""


def _leave_it(_code: int, _tail: str) -> None:
    """Explain nothing."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished compiler took: its process's memory here, and what its log says of it."""

    seconds: float
    peak_bytes: int
    reported_bytes: int = 0


def run_job(job: BuildJob, argv: Sequence[str], *, explain: Explain = _leave_it) -> Outcome:
    """Run a job's compiler, its log beside the output; ProcessError says why it failed."""
    log.info("the compiler's log is %s", job.log_file)
    try:
        return run_compiler(
            argv,
            log_file=job.log_file,
            memory_forecast=job.memory_words,
            timeout_s=job.timeout_s,
            explain=explain,
        )
    except ProcessError as error:
        if not job.log_file.is_file():
            raise
        raise ProcessError(f"{error} (log: {job.log_file})") from error


def run_compiler(
    argv: Sequence[str],
    *,
    log_file: Path,
    memory_forecast: str,
    timeout_s: float | None = None,
    explain: Explain = _leave_it,
) -> Outcome:
    """Run a command to its end; ProcessError says why it failed. Nothing of it stays behind."""
    start = time.monotonic()
    with log_file.open("w", encoding="utf-8") as kept:
        followed = _Log(kept)
        process = OwnedProcess(argv, on_line=followed.add)
        try:
            code = process.wait(timeout_s)
        finally:
            process.close(_STOP_S)
    if code is None:
        raise ProcessError(
            f"the compiler did not finish in time (it was {followed.stage or 'starting'}); raise "
            "--timeout"
        )
    tail = followed.tail
    if code:
        text = "\n".join(tail)
        reason = explain(code, text) or _reason(argv[0], code, tail, memory_forecast)
        raise ProcessError(reason)
    # In KiB, of the largest of all processes that have ended below this one.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    sizes = [float(match[1]) for line in tail if (match := _MEMORY.search(line))]
    reported = int(max(sizes, default=0) * (1 << 20))
    return Outcome(round(time.monotonic() - start, 2), peak, reported)


class _Log:
    """A compiler's lines as they come: all in a file, the last ones here, its stage told."""

    def __init__(self, kept: IO[str]) -> None:
        self.stage = ""
        self.tail: deque[str] = deque(maxlen=_KEPT_LINES)
        self._kept = kept

    def add(self, line: str) -> None:
        """Take the next line."""
        text = line.rstrip()
        self._kept.write(f"{text}\n")
        self.tail.append(text)
        log.debug("%s", text)
        self.stage = _advance(self.stage, text)


def _advance(stage: str, line: str) -> str:
    for name, pattern in STAGES.items():
        if name != stage and re.search(pattern, line):
            log.info("%s", name)
            return name
    return stage


def _reason(program: str, code: int, tail: deque[str], memory_forecast: str) -> str:
    name = Path(program).name
    if code in _KILLED:
        return (
            f"{name} was killed (signal 9), most likely out of memory: {memory_forecast}; use a "
            "machine with more, or --workers 1"
        )
    if code < 0:
        return f"{name} crashed with {signal.Signals(-code).name}; {_last_error(tail)}"
    return f"{name} failed with status {code}; {_last_error(tail)}"


def _last_error(tail: deque[str]) -> str:
    """Quote TensorRT's first complaint, the cause of others, else Python's last, else any line."""
    causes = [line for line in tail if _TENSORRT_ERROR.search(line)][:1]
    causes = causes or [line for line in tail if _PYTHON_ERROR.search(line)]
    causes = causes or [line for line in tail if line.strip()]
    return f"it said: {causes[-1].strip()}" if causes else "it said nothing"
