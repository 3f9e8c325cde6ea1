"""The gateway beside a server: a program of its own, so that nothing here needs what it needs."""

from __future__ import annotations

import json
import queue
import re
import shlex
import sys
from collections.abc import Callable
from typing import Any, Final

import click

from minitron_trt.errors import ProcessError, UsageError
from minitron_trt.host.processes import OwnedProcess
from minitron_trt.triton_repo.serving.server_options import ServerOptions

_START_S: Final = 60.0
_MARGIN_S: Final = 3.0
_ERROR: Final = re.compile(r"(?i)error: (.*)")
_USAGE: Final = 2


def gateway_argv(words: str, options: ServerOptions) -> tuple[str, ...]:
    """Return the command line; UsageError where Triton would not be behind the gateway alone."""
    if not options.endpoints.is_local or options.tls is not None:
        raise UsageError(
            "with --gateway Triton stays on 127.0.0.1 without TLS; give the gateway an address and "
            "TLS of its own: --gateway-options '--host 0.0.0.0 --tls-cert cert.pem …'"
        )
    try:
        parts = shlex.split(words)
    except ValueError as error:
        raise UsageError(
            f"--gateway-options is {words!r}, which a shell cannot read: {error}"
        ) from error
    program = (sys.executable, "-m", "minitron_trt", "gateway", "--json")
    drain = ("--drain", str(options.drain_s))
    return (*program, *drain, "--url", options.grpc_url, *parts)


class GatewayProcess:
    """A running gateway, as a context manager; it runs before the server does, and outlasts it not.

    Until Triton is ready its /health says 503.
    """

    def __init__(self, argv: tuple[str, ...], drain_s: int) -> None:
        self._argv = argv
        self._drain_s = drain_s
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._take: Callable[[str], None] = self._lines.put
        self._process: OwnedProcess | None = None
        self.addresses: dict[str, Any] = {}

    def __enter__(self) -> GatewayProcess:
        self._process = OwnedProcess(self._argv, on_line=lambda line: self._take(line))
        try:
            line = self._lines.get(timeout=_START_S)
            if not line.startswith("{"):
                self._fail(self._process, line)
            self.addresses = json.loads(line)
        except queue.Empty:
            self.stop()
            raise ProcessError(f"the gateway was not there after {_START_S:g} s") from None
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
            raise ProcessError(f"the gateway ended with status {code}; the server is stopped")

    def stop(self) -> None:
        """Let it answer what is under way, for the drain time, then end it."""
        process, self._process = self._process, None
        if process is not None:
            process.close(self._drain_s + _MARGIN_S)

    def _fail(self, process: OwnedProcess, line: str) -> None:
        code = process.wait(_MARGIN_S)
        words = [line]
        while not self._lines.empty():
            words.append(self._lines.get())
        reason = next((found[1] for each in words if (found := _ERROR.match(each))), line)
        kind = UsageError if code == _USAGE else ProcessError
        raise kind(f"the gateway does not start: {reason}")


def _pass_on(line: str) -> None:
    click.echo(line, err=True)
