"""How a server is reached, who may ask it what, and how it ends, as Triton's options."""

from __future__ import annotations

import random
import secrets
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from minitron_trt.drain_option import DRAIN_S
from minitron_trt.errors import BadInputError, ProcessError, UsageError
from minitron_trt.host.addresses import is_loopback
from minitron_trt.host.certificates import encrypted_key
from minitron_trt.records import read_regular

LOCALHOST: Final = "127.0.0.1"
ANYWHERE: Final = "0.0.0.0"
# What operates the server rather than uses it, in Triton's words; health, metadata and inference
# stay open.
ADMIN_PROTOCOLS: Final = (
    "model-repository",
    "model-config",
    "shared-memory",
    "statistics",
    "trace",
    "logging",
)
# Closed unless somebody asks. Clients read the models' configurations.
CLOSED_PROTOCOLS: Final = tuple(name for name in ADMIN_PROTOCOLS if name != "model-config")
_PEM: Final = b"-----BEGIN "
# Below those that Linux hands out to whoever connects.
_PORTS: Final = range(20_000, 32_000)
# Kept for good: a socket that is closed, or collected, gives its name up.
_RESERVATIONS: Final[list[socket.socket]] = []


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where the server listens; metrics have an address of their own."""

    host: str = LOCALHOST
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    metrics_host: str = LOCALHOST

    def __post_init__(self) -> None:
        for option, host in (("--host", self.host), ("--metrics-host", self.metrics_host)):
            if ":" in host:
                raise UsageError(f"{option} is {host!r}; expected an IPv4 address or a name")

    @property
    def http_url(self) -> str:
        """Return the URL of the HTTP endpoint, as a client on this machine uses it."""
        return f"http://{_reachable(self.host)}:{self.http_port}"

    @property
    def grpc_url(self) -> str:
        """Return the URL of the gRPC endpoint without TLS, as a client on this machine uses it."""
        return f"grpc://{_reachable(self.host)}:{self.grpc_port}"

    @property
    def metrics_url(self) -> str:
        """Return the URL that Prometheus scrapes, as seen from this machine."""
        return f"http://{_reachable(self.metrics_host)}:{self.metrics_port}/metrics"

    @property
    def is_local(self) -> bool:
        """Say whether only this machine reaches the inference endpoints."""
        return is_loopback(self.host)

    @property
    def open_address(self) -> str | None:
        """Return the first address, with its option, that other machines reach; None without."""
        for option, host in (("--host", self.host), ("--metrics-host", self.metrics_host)):
            if not is_loopback(host):
                return f"{option} {host}"
        return None

    def check_free(self) -> None:
        """Raise UsageError when two ports are the same or one is in use."""
        ports = {"http": self.http_port, "grpc": self.grpc_port, "metrics": self.metrics_port}
        if len(set(ports.values())) < len(ports):
            raise UsageError(f"the ports must differ; got {ports}")
        for name, port in ports.items():
            host = self.metrics_host if name == "metrics" else self.host
            with socket.socket() as probe:
                # As the server does, so that a connection that was just closed is not in the way.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((host, port))
                except OSError as error:
                    raise UsageError(
                        f"{name} port {port} of {host} cannot be taken ({error.strerror}); "
                        f"choose another with --{name}-port"
                    ) from error


def _reachable(host: str) -> str:
    return LOCALHOST if host == ANYWHERE else host


def free_endpoints() -> Endpoints:
    """Return ports of 127.0.0.1 that are free, and that nobody else gets from here.

    They stay this process's own as long as it runs. ProcessError when too few are left.
    """
    http_port, grpc_port, metrics_port = _reserve_ports(3)
    return Endpoints(http_port=http_port, grpc_port=grpc_port, metrics_port=metrics_port)


def _reserve_ports(count: int) -> list[int]:
    found: list[int] = []
    # In any order: processes that begin together would else all try the same ports.
    for port in random.sample(_PORTS, len(_PORTS)):
        # A name that one process at a time can have, in no folder, given up when it ends.
        reservation = socket.socket(socket.AF_UNIX)
        try:
            reservation.bind(f"\0minitron-trt port {port}")
            with socket.socket() as probe:
                probe.bind((LOCALHOST, port))
        except OSError:
            reservation.close()
        else:
            _RESERVATIONS.append(reservation)
            found.append(port)
            if len(found) == count:
                return found
    raise ProcessError(f"no {count} ports of {_PORTS[0]} to {_PORTS[-1]} are free; close a server")


@dataclass(frozen=True, slots=True)
class Tls:
    """The PEM files of gRPC's TLS; with a `ca`, clients must show a certificate that it signed."""

    cert: Path
    key: Path
    ca: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Return the files that there are."""
        return (self.cert, self.key, self.ca) if self.ca else (self.cert, self.key)

    def check(self) -> None:
        """Refuse files that are not there or are no PEM, of which Triton would not say so."""
        for path in self.files:
            if _PEM not in read_regular(path):
                raise BadInputError(
                    f"{path} is not a PEM file; expected text with {_PEM.decode()!r}"
                )
        # The two forms of PEM that have a passphrase; Triton has no option for it.
        key = read_regular(self.key)
        if b"BEGIN ENCRYPTED PRIVATE KEY" in key or b"Proc-Type: 4,ENCRYPTED" in key:
            raise encrypted_key(self.key)

    def arguments(self) -> list[str]:
        """Return Triton's options."""
        arguments = ["--grpc-use-ssl=true"]
        if self.ca:
            arguments.append("--grpc-use-ssl-mutual=true")
        arguments += [f"--grpc-server-cert={self.cert}", f"--grpc-server-key={self.key}"]
        if self.ca:
            arguments.append(f"--grpc-root-cert={self.ca}")
        return arguments


def _unsendable_header() -> str:
    """Return a HEADER=VALUE for Triton that no request can have, whoever reads it.

    Triton takes it on its command line only, which the users of the machine can read. So the value
    begins with a space, which HTTP drops from what a client sends, and the header has a capital,
    which gRPC's headers cannot have; a number drawn by chance is for a Triton that would mend that.
    """
    return f"Closed= {secrets.token_hex(16)}"


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How a server listens and ends, as its operator decides.

    `admin` is HEADER=VALUE, which the admin protocols ask for; without it nobody can make their
    calls but those of `allowed_apis`. `insecure_embedded` has the embedded server listen on other
    addresses than this machine's own. `drain_s` is how long running requests may go on when the
    server is stopped; `gpus` are device ids, () for those needed. After `connection_age_s` gRPC's
    clients are told to connect anew for what they ask next, so that they find servers that are new.
    """

    endpoints: Endpoints = field(default_factory=Endpoints)
    tls: Tls | None = None
    admin: str | None = None
    allowed_apis: tuple[str, ...] = ()
    insecure_embedded: bool = False
    closed: str = field(default_factory=_unsendable_header, repr=False, compare=False)
    drain_s: int = DRAIN_S
    connection_age_s: int | None = None
    gpus: tuple[str, ...] = ()
    multi_model: bool = False

    def __post_init__(self) -> None:
        if self.admin is None:
            return
        name, equals, value = self.admin.partition("=")
        # Triton splits at commas; a header's name has lower case in gRPC.
        if not (name and equals and value) or "," in self.admin or name != name.lower():
            raise UsageError(
                f"--restrict-admin is for {name!r}; expected header=value with a header in lower "
                "case, a value, and no comma"
            )

    @property
    def grpc_url(self) -> str:
        """Return the URL that a client on this machine gives."""
        url = self.endpoints.grpc_url
        return url.replace("grpc://", "grpcs://", 1) if self.tls else url

    def arguments(self) -> list[str]:
        """Return Triton's options."""
        there = self.endpoints
        return [
            f"--http-address={there.host}",
            f"--http-port={there.http_port}",
            f"--grpc-address={there.host}",
            f"--grpc-port={there.grpc_port}",
            f"--metrics-address={there.metrics_host}",
            f"--metrics-port={there.metrics_port}",
            # The time to a first response, since 24.11; before, Triton does not know it.
            "--metrics-config=histogram_latencies=true",
            # Which models there are is the repository's to say, and nobody's over the network.
            "--model-control-mode=none",
            f"--exit-timeout-secs={self.drain_s}",
            *(
                (f"--grpc-max-connection-age={1000 * self.connection_age_s}",)
                if self.connection_age_s
                else ()
            ),
            *(self.tls.arguments() if self.tls else ()),
            *self._restrictions(),
        ]

    def _restrictions(self) -> list[str]:
        protocols = ADMIN_PROTOCOLS if self.admin else CLOSED_PROTOCOLS
        restricted = ",".join(name for name in protocols if name not in self.allowed_apis)
        if not restricted:
            return []
        header = self.admin or self.closed
        # A gRPC client sends the header as triton-grpc-protocol-HEADER.
        return [
            f"--http-restricted-api={restricted}:{header}",
            f"--grpc-restricted-protocol={restricted}:{header}",
        ]
