"""Run a tritonserver: one deadline, its failures in words, never left behind."""

from __future__ import annotations

import logging
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from minitron_trt.errors import ProcessError
from minitron_trt.host.processes import OwnedProcess, is_running
from minitron_trt.outputs import output_errors
from minitron_trt.triton_repo.serving.launch import Launch
from minitron_trt.triton_repo.serving.python_stubs import Stall, model_processes
from minitron_trt.triton_repo.serving.runtime_load import read_load, read_local
from minitron_trt.triton_repo.serving.server_log import ServerLog
from minitron_trt.triton_repo.serving.server_options import ServerOptions

log = logging.getLogger(__name__)

_POLL_S: Final = 0.05
_CHECK_S: Final = 1.0
# Triton gives up by itself after the drain time, but may hang in an open gRPC stream.
_MARGIN_S: Final = 3.0
_ASK_LOAD_S: Final = 0.2
# A request may be between two models: so long nothing must be under way.
_IDLE_S: Final = 1.0
# After the last request there may be something of its response to write.
_FLUSH_S: Final = 0.2
_REMOVE_S: Final = 60.0
# Model processes that use no processor so long, and for that share of the deadline, stand still.
_STALL_S: Final = 5.0
_STALL_SHARE: Final = 0.25
# How a shell, docker and mpirun pass on that a signal ended what they ran.
_BY_SIGNAL: Final = 128


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
        self._models_by_pid: dict[int, str] = {}
        self._hurried = False

    def __enter__(self) -> TritonServer:
        self.endpoints.check_free()
        if self._log_file is not None:
            with output_errors(self._log_file):
                self._log.open()
        try:
            self._launch.prepare()
            log.info(
                "starting tritonserver (%s) with %s",
                self._launch.runner,
                ", ".join(self._launch.models),
            )
            log.debug("%s", self._without_secret(shlex.join(self._launch.argv)))
            deadline = time.monotonic() + self._timeout_s
            if not self._start(deadline, may_stall=False):
                log.warning("the models' processes got no processor; starting once more")
                self._end()
                self._log.start_again()
                self._start(deadline, may_stall=True)
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

    def wait(self, check: Callable[[], None] | None = None) -> None:
        """Wait for an end that nobody asked for: ProcessError when the server or a model dies.

        `check` is called every second, and raises when something else beside the server has died.

        Triton (2.51) neither ends the streams of a Python model whose process has died nor starts
        it again, and says all the while that it is ready. Models in a container are not seen here.
        """
        process = self._process
        assert process is not None
        while (code := process.wait(_CHECK_S)) is None:
            if check is not None:
                check()
            if died := self._dead_models():
                # The server may be ending, its models first: then that is the news.
                if process.wait(_CHECK_S) is not None:
                    continue
                self.hurry()
                raise ProcessError(
                    f"the process of model {', '.join(died)} died, which Triton leaves its "
                    "clients to wait for; the server is stopped: start it again"
                )
        self._close()
        raise ProcessError(self._explain_end(code, "ended by itself"))

    def _dead_models(self) -> list[str]:
        """Return the names of the Python models of which a process has died."""
        models = self._models_by_pid.items()
        return sorted({model for pid, model in models if not is_running(pid)})

    def stop(self) -> bool:
        """Let running requests finish for the drain time, then end everything.

        Returns whether nothing was cut: the server ended by itself in that time, its log says that
        it is done, or the runtime's metrics that there is nothing to wait for. Triton (2.51) goes
        on waiting for requests of the ensemble whose clients have left, and for gRPC streams on
        which nothing is asked.
        """
        process = self._process
        if process is None:
            return True
        idle = False
        try:
            process.ask_to_end()
            idle = self._wait_for_end(process, self.options.drain_s + _MARGIN_S)
        finally:
            ended = process.poll() is not None
            self._close()
        return ended or idle

    def hurry(self) -> None:
        """Have `stop` wait no longer; for signal handlers."""
        self._hurried = True

    def _wait_for_end(self, process: OwnedProcess, seconds: float) -> bool:
        """Wait for the end, for so many seconds; return whether the runtime idles before it."""
        begin = busy = asked = time.monotonic()
        told = False
        while process.poll() is None and not self._hurried and asked < begin + seconds:
            time.sleep(_POLL_S)
            if self._is_finished():
                process.wait(_FLUSH_S)
                return True
            if time.monotonic() < asked + _ASK_LOAD_S:
                continue
            load, asked = read_load(self.endpoints.metrics_url, _CHECK_S), time.monotonic()
            if load is None or not load.is_idle:
                busy = asked
            elif asked - busy > _IDLE_S:
                return True
            waited_for = str(load) if load and not load.is_idle else self._log.draining
            if waited_for and busy == asked and not told:
                told = True
                log.info(
                    "waiting up to %d s for requests: %s; a second Ctrl-C cuts them",
                    self.options.drain_s,
                    waited_for,
                )
        return False

    def _is_finished(self) -> bool:
        """Return whether every request is answered and no model has anything left to do.

        Triton (2.51) looks once a second, and its stubs end one after another, 0.3 s each.
        """
        if self._log.is_drained and not self._launch.must_finalize:
            return True
        return self._log.unloaded.issuperset(self._launch.models)

    def _close(self) -> None:
        self._end()
        self._log.close()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.close()
        if self._launch.remove:
            remove = self._launch.remove
            # Unchecked: mostly the container is gone by now.
            subprocess.run(remove, capture_output=True, timeout=_REMOVE_S, check=False)
        self._launch.remove_shared_memory()

    def _start(self, deadline: float, *, may_stall: bool) -> bool:
        """Start the server and wait until it is ready; return False when its models stall.

        The stub of a Python model that gets no processor at the wrong moment, or is stopped, waits
        for ever, and Triton for it.
        """
        self._process = process = OwnedProcess(
            self._launch.argv, on_line=self._log.add, environment=self._launch.environment
        )
        stall = Stall(
            lambda: self._loading_processes(process),
            max(_STALL_S, self._timeout_s * _STALL_SHARE),
        )
        while time.monotonic() < deadline:
            code = process.poll()
            if code is not None:
                self._close()
                raise ProcessError(self._explain_end(code, "ended while loading"))
            if self._is_answered("/v2/health/ready"):
                self._check_models()
                # Noted while all are alive: a process that is gone has no name to be told by.
                self._models_by_pid = model_processes(process.members())
                self._log.begin_serving()
                return True
            if not may_stall and stall.is_seen():
                return False
            time.sleep(_POLL_S)
        waiting = self._log.waiting_for(self._launch.models)
        raise ProcessError(
            f"tritonserver was not ready after {self._timeout_s:.0f} s; it was loading {waiting}"
            f"{self._log.failure()}; raise --timeout or run with -v"
        )

    def _loading_processes(self, process: OwnedProcess) -> set[int]:
        """Return what runs for the server, but for the processes of models that are loaded."""
        members = set(process.members())
        models = model_processes(members)
        return members - {process.pid} - {pid for pid in models if models[pid] in self._log.loaded}

    def _check_models(self) -> None:
        """Ask after each model: a server that is told to ignore failures is ready without some."""
        absent = [
            name
            for name in self._launch.models
            if not self._is_answered(f"/v2/models/{name}/ready")
        ]
        if absent:
            raise ProcessError(
                f"tritonserver is up without {', '.join(absent)}{self._log.failure()}; run with -v"
            )

    def _without_secret(self, text: str) -> str:
        for secret in (self.options.admin, self.options.closed):
            if secret:
                text = text.replace(secret, f"{secret.partition('=')[0]}=...")
        return text

    def _explain_end(self, code: int, what: str) -> str:
        """Say why the server ended, in the runner's words where it has any."""
        if explained := self._launch.explain(code, self._log.tail):
            return explained
        name = _signal_name(code)
        if name is None:
            return f"tritonserver {what} with status {code}{self._log.last_words()}"
        served = ", ".join(self._launch.models)
        text = f"tritonserver {what} with status {code} ({name}), serving {served}"
        text += self._log.failure()
        if name == signal.SIGKILL.name:
            return f"{text}; it was killed from outside, as for want of memory (dmesg says so)"
        return f"{text}; {self._launch.holes}" if self._launch.holes else text

    def _is_answered(self, path: str) -> bool:
        """Return whether the server says yes to a health check."""
        return read_local(f"{self.endpoints.http_url}{path}", _CHECK_S) is not None


def _signal_name(code: int) -> str | None:
    """Return the name of the signal that an exit status stands for; None for another status."""
    number = -code if code < 0 else code - _BY_SIGNAL
    try:
        return signal.Signals(number).name
    except ValueError:
        return None
