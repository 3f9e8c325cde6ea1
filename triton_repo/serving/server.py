"""Run a tritonserver: one deadline, its failures in words, never left behind."""

from __future__ import annotations

import contextlib
import logging
import re
import shlex
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from minitron_trt.artifacts import output_errors
from minitron_trt.errors import ProcessError
from minitron_trt.host.processes import OwnedProcess, is_running
from minitron_trt.triton_repo.serving.server_log import ServerLog
from minitron_trt.triton_repo.serving.server_options import ServerOptions

log = logging.getLogger(__name__)

_POLL_S: Final = 0.05
_LOOK_S: Final = 1.0
# Triton gives up by itself after the drain time, but may hang in an open gRPC stream.
_MARGIN_S: Final = 3.0
_REMOVE_S: Final = 60.0
# Python models run in processes of this name, and their argument is the path of their model.py.
_STUB: Final = "triton_python_backend_stub"
_MODEL: Final = re.compile(r"/(?P<model>[^/]+)/\d+/model\.py$")
Explain = Callable[[int, str], str | None]
"""Say what an exit status and the last lines of the log mean; None leaves it to the default."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One way to run a server: the command, and what must lie there before it starts.

    SIGTERM to the command makes the server finish its requests and end. `links` and `texts` are
    files to make, by their paths; `remove` is a command that afterwards makes sure of the end;
    `check` raises when something that it needs is absent.
    """

    runner: str
    argv: tuple[str, ...]
    models: tuple[str, ...]
    ranks: int = 1
    environment: Mapping[str, str] | None = None
    links: Mapping[Path, Path] = field(default_factory=dict)
    texts: Mapping[Path, str] = field(default_factory=dict)
    remove: tuple[str, ...] = ()
    check: Callable[[], None] = lambda: None
    explain: Explain = lambda code, tail: None

    def prepare(self) -> None:
        """Check what it needs and make the files."""
        self.check()
        for path in (*self.links, *self.texts):
            path.parent.mkdir(parents=True, exist_ok=True)
        for path, target in self.links.items():
            path.symlink_to(target)
        for path, text in self.texts.items():
            path.write_text(text, encoding="utf-8")


class TritonServer:
    """A running tritonserver, as a context manager; leaving it drains and stops the server."""

    def __init__(
        self,
        launch: Launch,
        options: ServerOptions,
        *,
        timeout_s: float = 120.0,
        log_file: Path | None = None,
    ) -> None:
        self.options = options
        self.endpoints = options.endpoints
        self._launch = launch
        self._timeout_s = timeout_s
        self._log_file = log_file
        self._log = ServerLog(log_file, launch.ranks)
        self._process: OwnedProcess | None = None
        self._stubs: dict[int, str] = {}  # models by the ids of their processes
        self._hurried = False

    def __enter__(self) -> TritonServer:
        self.endpoints.check_free()
        if self._log_file is not None:
            with output_errors(self._log_file):
                self._log.open()
        try:
            self._launch.prepare()
            log.debug("%s", self._without_secret(shlex.join(self._launch.argv)))
            self._process = OwnedProcess(
                self._launch.argv, on_line=self._log.add, environment=self._launch.environment
            )
            self._wait_until_ready(self._process)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Return the process id of the server, or of what runs its ranks or its container."""
        assert self._process is not None
        return self._process.pid

    def wait(self) -> None:
        """Return never: raise ProcessError when the server, or a Python model of it, dies.

        Triton (2.51) neither ends the streams of a Python model whose process has died nor starts
        it again, and says all the while that it is ready. In a container it is not seen from here.
        """
        process = self._process
        assert process is not None
        while (code := process.wait(_LOOK_S)) is None:
            if died := {model for pid, model in self._stubs.items() if not is_running(pid)}:
                if process.wait(_LOOK_S) is not None:
                    continue
                self.hurry()
                raise ProcessError(
                    f"the process of model {', '.join(sorted(died))} died, which Triton leaves its "
                    "clients to wait for; the server is stopped: start it again"
                )
        self._close()
        raise ProcessError(self._words(code, "ended by itself"))

    def stop(self) -> bool:
        """Let running requests finish for the drain time, then end everything.

        Returns whether the server ended by itself in that time, which a client that keeps a gRPC
        stream open prevents.
        """
        process = self._process
        if process is None:
            return True
        try:
            process.ask_to_end()
            self._wait_for_end(process, self.options.drain_s + _MARGIN_S)
        finally:
            ended = process.poll() is not None
            self._close()
        return ended

    def hurry(self) -> None:
        """Have `stop` wait no longer; for signal handlers."""
        self._hurried = True

    def _wait_for_end(self, process: OwnedProcess, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while process.poll() is None and not self._hurried and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def _close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.close()
            if self._launch.remove:
                remove = self._launch.remove
                subprocess.run(remove, capture_output=True, timeout=_REMOVE_S, check=False)
        self._log.close()

    def _wait_until_ready(self, process: OwnedProcess) -> None:
        deadline = time.monotonic() + self._timeout_s
        while time.monotonic() < deadline:
            code = process.poll()
            if code is not None:
                self._close()
                raise ProcessError(self._words(code, "ended while loading"))
            if self._answers("/v2/health/ready"):
                self._check_models()
                self._stubs = dict(_stubs(process.members()))
                return
            time.sleep(_POLL_S)
        waiting = self._log.waiting_for(self._launch.models)
        raise ProcessError(
            f"tritonserver was not ready after {self._timeout_s:.0f} s; it was loading {waiting}"
            f"{self._log.failure()}; raise --timeout or run with -v"
        )

    def _check_models(self) -> None:
        """Ask after each model: a server that is told to ignore failures is ready without some."""
        absent = [
            name for name in self._launch.models if not self._answers(f"/v2/models/{name}/ready")
        ]
        if absent:
            raise ProcessError(
                f"tritonserver is up without {', '.join(absent)}{self._log.failure()}; run with -v"
            )

    def _without_secret(self, text: str) -> str:
        header, _, value = (self.options.admin or "").partition("=")
        return text.replace(f"{header}={value}", f"{header}=...") if value else text

    def _words(self, code: int, what: str) -> str:
        explained = self._launch.explain(code, self._log.tail)
        return explained or f"tritonserver {what} with status {code}{self._log.failure()}"

    def _answers(self, path: str) -> bool:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"{self.endpoints.http_url}{path}", timeout=_LOOK_S) as response:
                return bool(response.status == 200)
        except (OSError, urllib.error.URLError):
            return False


def _stubs(pids: Iterable[int]) -> Iterator[tuple[int, str]]:
    """Yield the processes of Python models among these, each with its model."""
    for pid in pids:
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
            if Path(command[0]).name == _STUB:
                models = (_MODEL.search(argument) for argument in command)
                yield pid, next((found["model"] for found in models if found), "unknown")
