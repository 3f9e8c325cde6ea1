"""Run a tritonserver: own process group, one deadline, its failures in words, never left behind."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from minitron_trt.errors import ProcessError, UsageError
from minitron_trt.triton_repo.installation import Installation

log = logging.getLogger(__name__)

LOCALHOST: Final = "127.0.0.1"
_POLL_S = 0.05
_STOP_S = 15.0
_KEPT_LINES = 400
# `failed to load 'NAME' version 1: REASON`, and the end of a Python traceback.
_FAILURE = re.compile(r"failed to load '(?P<model>[^']+)'.*?: (?P<reason>.+)")


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where the server listens."""

    host: str = LOCALHOST
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002

    @property
    def http_url(self) -> str:
        """Return the URL of the HTTP endpoint, as a client on this machine uses it."""
        return f"http://{self._reachable}:{self.http_port}"

    @property
    def grpc_url(self) -> str:
        """Return the URL of the gRPC endpoint, as a client on this machine uses it."""
        return f"grpc://{self._reachable}:{self.grpc_port}"

    @property
    def _reachable(self) -> str:
        return LOCALHOST if self.host == "0.0.0.0" else self.host

    def check_free(self) -> None:
        """Raise UsageError when two ports are the same or one is in use."""
        ports = {"http": self.http_port, "grpc": self.grpc_port, "metrics": self.metrics_port}
        if len(set(ports.values())) < len(ports):
            raise UsageError(f"the ports must differ; got {ports}")
        for name, port in ports.items():
            with socket.socket() as probe:
                # As the server does, so that a connection that was just closed is not in the way.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((self.host, port))
                except OSError as error:
                    raise UsageError(
                        f"{name} port {port} of {self.host} cannot be taken ({error.strerror}); "
                        f"choose another with --{name}-port"
                    ) from error


def free_endpoints() -> Endpoints:
    """Return ports of 127.0.0.1 that are free now."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(3)]
        for probe in probes:
            probe.bind((LOCALHOST, 0))
        return Endpoints(LOCALHOST, *(probe.getsockname()[1] for probe in probes))


class TritonServer:
    """A running tritonserver, as a context manager; leaving it stops the server."""

    def __init__(
        self,
        installation: Installation,
        repository: Path,
        endpoints: Endpoints,
        *,
        timeout_s: float = 120.0,
        log_file: Path | None = None,
    ) -> None:
        self.endpoints = endpoints
        self._installation = installation
        self._repository = repository
        self._timeout_s = timeout_s
        self._log_file = log_file
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._scratch = ""

    def __enter__(self) -> TritonServer:
        self.endpoints.check_free()
        self._scratch = tempfile.mkdtemp(prefix="minitron-trt-")
        try:
            self._start()
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Return the process id of the server, also the id of its process group."""
        assert self._process is not None
        return self._process.pid

    def wait(self) -> None:
        """Return never: raise ProcessError when the server ends by itself."""
        assert self._process is not None
        code = self._process.wait()
        raise ProcessError(f"tritonserver ended by itself with status {code}{self._failure()}")

    def stop(self) -> None:
        """Ask the server to end, then make sure that nothing of its group is left."""
        process = self._process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_S)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self._process = None
        if self._reader is not None:
            self._reader.join()
            self._reader = None
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _start(self) -> None:
        backends = self._installation.make_backend_folder(Path(self._scratch, "backends"))
        command = argv(self._installation.binary, self._repository, backends, self.endpoints)
        log.debug("%s", " ".join(command))
        leash = Path(__file__).with_name("leash.py")
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(leash), str(os.getpid()), *command],
            env=dict(self._installation.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def _read_log(self) -> None:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        with contextlib.ExitStack() as stack:
            stack.enter_context(process.stdout)
            copy = stack.enter_context(self._log_file.open("w")) if self._log_file else None
            for line in process.stdout:
                self._lines.append(line.rstrip())
                log.debug("triton: %s", line.rstrip())
                if copy:
                    copy.write(line)

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self._timeout_s
        while time.monotonic() < deadline:
            code = self._process.poll()
            if code is not None:
                if self._reader is not None:
                    self._reader.join()
                raise ProcessError(
                    f"tritonserver ended with status {code} while loading "
                    f"{self._repository}{self._failure()}"
                )
            if _answers(f"{self.endpoints.http_url}/v2/health/ready"):
                return
            time.sleep(_POLL_S)
        raise ProcessError(
            f"tritonserver was not ready after {self._timeout_s:.0f} s{self._failure()}; "
            "raise --timeout or run with -v"
        )

    def _failure(self) -> str:
        """Return which model failed and the line of the log that says why."""
        for line in self._lines:
            if match := _FAILURE.search(line):
                return f": model {match['model']!r}: {match['reason']}"
        errors = [line for line in self._lines if line.startswith(("E", "error"))]
        last = errors[-1:] or list(self._lines)[-1:]
        return f": {last[0]}" if last else ""


def argv(binary: Path, repository: Path, backends: Path, endpoints: Endpoints) -> list[str]:
    """Return the server's command line."""
    return [
        str(binary),
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        "--disable-auto-complete-config",
        f"--http-address={endpoints.host}",
        f"--http-port={endpoints.http_port}",
        f"--grpc-address={endpoints.host}",
        f"--grpc-port={endpoints.grpc_port}",
        f"--metrics-address={endpoints.host}",
        f"--metrics-port={endpoints.metrics_port}",
        "--exit-timeout-secs=10",
    ]


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=1) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False
