"""What stands before a server: a program of its own, so that nothing here needs what it needs."""

from __future__ import annotations

import json
import queue
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import click

from minitron_trt.errors import BadInputError, MinitronError, ProcessError, UsageError
from minitron_trt.host.processes import OwnedProcess
from minitron_trt.triton_repo.serving.server_options import ServerOptions

GATEWAY: Final = "gateway"
DYNAMO: Final = "dynamo"
_START_S: Final = 60.0
_ERROR: Final = re.compile(r"(?i)error: (.*)")
# By exit code, for what the user can mend; any other is of a program that failed.
_ERROR_KINDS: Final[dict[int, type[MinitronError]]] = {2: UsageError, 3: BadInputError}


@dataclass(frozen=True, slots=True)
class _Program:
    """A command that can stand before a server, and the option of `serve` that asks for it.

    `protocol` is how it asks Triton; `margin_s` is how long its end may take beside the drain;
    `instead` says how others reach it.
    """

    command: str
    option: str
    protocol: str
    margin_s: float
    instead: str


_PROGRAMS: Final[Mapping[str, _Program]] = MappingProxyType(
    {
        GATEWAY: _Program(
            command="gateway",
            option="--gateway",
            # As the command has it by default.
            protocol="http",
            margin_s=3.0,
            instead="give the gateway an address and TLS of its own: --gateway-options '--host "
            "0.0.0.0 --tls-cert cert.pem …'",
        ),
        DYNAMO: _Program(
            command="dynamo-worker",
            option="--frontend",
            protocol="grpc",
            # Dynamo waits 5 s for routers to notice that a worker goes, before it drains.
            margin_s=8.0,
            instead="only the worker beside it asks; the frontend has an address and TLS of its "
            "own",
        ),
    }
)


def front_argv(
    name: str, words: str, options: ServerOptions, *, defaults: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Return the command line of a program before a server; a worker's repository comes after it.

    `words` are options of the program, as a shell reads them, and win over `defaults`. UsageError
    where they cannot be read, or where others could reach Triton past the program.
    """
    program = _PROGRAMS[name]
    if not options.endpoints.is_local or options.tls is not None:
        raise UsageError(
            f"with {program.option} Triton stays on 127.0.0.1 without TLS; {program.instead}"
        )
    urls = {"http": options.endpoints.http_url, "grpc": options.grpc_url}
    try:
        parts = shlex.split(words)
    except ValueError as error:
        raise UsageError(
            f"{program.option}-options is {words!r}, which a shell cannot read: {error}"
        ) from error
    return (
        *(sys.executable, "-m", "minitron_trt", program.command, "--json"),
        *("--drain", str(options.drain_s), "--url", urls[program.protocol]),
        *defaults,
        *parts,
    )


class FrontProcess:
    """A running gateway or worker of Dynamo's, as a context manager.

    It starts before the server and ends before it. Until Triton is ready a gateway's /health says
    503, and no router knows of the worker. `record` is what it says of itself.
    """

    def __init__(self, name: str, argv: tuple[str, ...], drain_s: int) -> None:
        self.name = name
        self._argv = argv
        self._stop_s = drain_s + _PROGRAMS[name].margin_s
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._take: Callable[[str], None] = self._lines.put
        self._process: OwnedProcess | None = None
        self.record: dict[str, Any] = {}

    def __enter__(self) -> FrontProcess:
        # A lambda, since `_take` becomes another once the record has come.
        self._process = OwnedProcess(self._argv, on_line=lambda line: self._take(line))
        try:
            self.record = self._first_record(self._process)
        except BaseException:
            self.stop()
            raise
        self._take = _pass_on
        while not self._lines.empty():
            _pass_on(self._lines.get())
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def check(self) -> None:
        """Raise ProcessError when it has ended by itself."""
        process = self._process
        code = None if process is None else process.poll()
        if code is not None:
            raise ProcessError(f"the {self.name} ended with status {code}; the server is stopped")

    def stop(self) -> None:
        """Let it answer what is under way, for the drain time, then end it."""
        process, self._process = self._process, None
        if process is not None:
            process.close(self._stop_s)

    def _first_record(self, process: OwnedProcess) -> dict[str, Any]:
        """Return what it prints when it has begun; what comes before that is passed on."""
        said: list[str] = []
        until = time.monotonic() + _START_S
        while (left := until - time.monotonic()) > 0:
            try:
                line = self._lines.get(timeout=min(left, 1.0))
            except queue.Empty:
                if process.poll() is not None:
                    self._fail(process, said)
                continue
            # With --json its record is one line; what comes before it are warnings.
            if line.startswith("{"):
                for each in said:
                    _pass_on(each)
                record: dict[str, Any] = json.loads(line)
                return record
            said.append(line)
        raise ProcessError(f"the {self.name} was not there after {_START_S:g} s")

    def _fail(self, process: OwnedProcess, said: list[str]) -> None:
        while not self._lines.empty():
            said.append(self._lines.get())
        told = next((found[1] for each in said if (found := _ERROR.match(each))), "")
        code = process.poll()
        reason = told or (said[-1] if said else f"it ended with status {code}")
        kind = _ERROR_KINDS.get(code or 0, ProcessError)
        raise kind(f"the {self.name} does not start: {reason}")


def _pass_on(line: str) -> None:
    click.echo(line, err=True)
