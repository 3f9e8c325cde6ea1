"""Run the gateway: a socket that is taken before anything starts, and an end that drains."""

from __future__ import annotations

import logging
import resource
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

import uvicorn

from minitron_trt.drain_option import DRAIN_S
from minitron_trt.errors import UsageError
from minitron_trt.host.certificates import load_certificate

# As uvicorn has it of a socket that it opens itself.
_BACKLOG: Final = 2048
# Libraries, logs, and clients that are turned away.
_OTHER_FILES: Final = 256


@dataclass(frozen=True, slots=True)
class Listener:
    """Where the gateway listens, and how it ends."""

    host: str = "127.0.0.1"
    port: int = 9000
    certificate: Path | None = None
    key: Path | None = None
    drain_s: int = DRAIN_S

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise UsageError("TLS needs both --tls-cert and --tls-key")
        for path in (self.certificate, self.key):
            if path is not None and not path.is_file():
                raise UsageError(f"{path} is not a file; expected one in PEM form")
        if self.certificate is not None and self.key is not None:
            # uvicorn would find out only when the gateway's address has been told.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            load_certificate(context, certificate=self.certificate, key=self.key)

    def open(self) -> socket.socket:
        """Take the port; UsageError when it is not free or the host is none."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            return socket.create_server((self.host, self.port), family=family, backlog=_BACKLOG)
        except OSError as error:
            raise UsageError(
                f"the gateway cannot listen on {self.host} port {self.port} ({error.strerror}); "
                "choose others with --host and --port"
            ) from error

    def url(self, taken: socket.socket) -> str:
        """Return where clients find the API."""
        host, port = taken.getsockname()[:2]
        scheme = "https" if self.certificate else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def allow_open_files(sequences: int) -> None:
    """Raise the limit of open files, as far as may be, to what so many running sequences need.

    Each has its client's connection, and one of its own to Triton over HTTP.
    """
    # On Linux neither is ever RLIM_INFINITY, which is -1 and would be the smaller one for min().
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(2 * sequences + _OTHER_FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class GatewayServer(uvicorn.Server):
    """Runs until SIGTERM or Ctrl-C, then until what is under way is answered; twice cuts it."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal, which has then done its work: uvicorn would raise it once more."""
        self.force_exit = self.should_exit
        self.should_exit = True


def gateway_server(app: Any, listener: Listener) -> GatewayServer:
    """Return a server of the application; `run(sockets=[listener.open()])` runs it."""
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    return GatewayServer(
        uvicorn.Config(
            app,
            # Its log is the gateway's own, with one line for a request.
            log_config=None,
            access_log=False,
            # "auto" would serve an application that raises without a lifespan.startup.failed.
            lifespan="on",
            ws="none",
            server_header=False,
            ssl_certfile=listener.certificate,
            ssl_keyfile=listener.key,
            timeout_graceful_shutdown=listener.drain_s,
        )
    )
