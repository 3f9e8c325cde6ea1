"""Where a server is and how long to wait for it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from minitron_trt.errors import BadInputError, UsageError
from minitron_trt.host.addresses import is_loopback

if TYPE_CHECKING:
    from pathlib import Path
    from urllib.parse import SplitResult

# The port of a URL that has none: Triton's own for plain gRPC, which the web has no port for, and
# the web's for all others.
_DEFAULT_PORTS: Final[Mapping[str, int]] = MappingProxyType(
    {"grpc": 8001, "grpcs": 443, "http": 80, "https": 443}
)
_TRITONS_PORTS: Final[Mapping[str, str]] = MappingProxyType({"8000": "http", "8001": "grpc"})
# Patterns are compiled when they are first used: that takes longer than to import this module.
_PLACE: Final = r"(?a)[\w.-]+:(?P<port>\d+)"
# Of a name with a part that has none or more than 63 characters, Python's codec idna raises a
# UnicodeError before any look-up.
_HOST: Final = r"(?a)[\w:%-]{1,63}(?:\.[\w:%-]{1,63})*\.?"
# gRPC takes no more than this; names with -bin have bytes as values there.
_HEADER_NAME: Final = r"(?ai)(?!grpc-)(?!.*-bin$)[\w.-]+"
_HEADER_VALUE: Final = r"(?:[!-~](?:[ -~]*[!-~])?)?"
# Headers that the transports set themselves, and those of one connection, which no proxy passes on.
_RESERVED: Final = frozenset(
    {"connection", "content-encoding", "content-length", "content-type", "host", "te"}
    | {"accept-encoding", "transfer-encoding", "upgrade"}
)
_EXAMPLE: Final = "grpc://127.0.0.1:8001 or http://127.0.0.1:8000"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of a Triton server's gRPC or HTTP service."""

    scheme: str
    host: str
    port: int
    path: str = ""
    environment_proxy: bool = False

    @classmethod
    def parse(cls, url: str, *, environment_proxy: bool | None = None) -> Endpoint:
        """Read a URL; UsageError says what is wrong with it.

        The environment's proxies serve every address but this machine's, unless told otherwise.
        """
        parts = _split(url)
        host = parts.hostname or ""
        return cls(
            scheme=parts.scheme,
            host=host,
            port=parts.port or _DEFAULT_PORTS[parts.scheme],
            path=parts.path.rstrip("/"),
            environment_proxy=(
                not is_loopback(host) if environment_proxy is None else environment_proxy
            ),
        )

    @property
    def is_grpc(self) -> bool:
        """Say whether the service is gRPC; it is HTTP otherwise."""
        return self.scheme.startswith("grpc")

    @property
    def is_encrypted(self) -> bool:
        """Say whether the connection uses TLS."""
        return self.scheme in ("grpcs", "https")

    @property
    def address(self) -> str:
        """Return host:port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.address}{self.path}"


def _with_scheme(url: str) -> str:
    """Return a URL with its protocol, which Triton's own ports stand for, and others do not."""
    place = re.fullmatch(_PLACE, url)
    if place is None:
        return url
    if scheme := _TRITONS_PORTS.get(place["port"]):
        return f"{scheme}://{url}"
    raise UsageError(f"{url!r} does not say its protocol; expected a URL like {_EXAMPLE}")


def _split(url: str) -> SplitResult:
    # Loaded by who connects, as what else a URL needs.
    from urllib.parse import urlsplit

    url = _with_scheme(url)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"{url!r} is not a URL ({error}); expected one like {_EXAMPLE}") from error
    is_host = re.fullmatch(_HOST, parts.hostname or "")
    if parts.scheme not in _DEFAULT_PORTS or not is_host or port == 0:
        raise UsageError(
            f"{url!r} is not the URL of a server; expected grpc://, grpcs://, http:// or https:// "
            f"with a host and a port, like {_EXAMPLE}"
        )
    # What the protocol cannot carry would otherwise be dropped without a word.
    is_grpc = parts.scheme.startswith("grpc")
    surplus = parts.query or parts.fragment or "@" in parts.netloc
    if surplus or (is_grpc and parts.path not in ("", "/")):
        raise UsageError(f"{url!r} has more than a host and a port; expected one like {_EXAMPLE}")
    return parts


def check_headers(headers: Mapping[str, str]) -> None:
    """Raise UsageError for what neither HTTP nor gRPC can carry as a header."""
    for name, value in headers.items():
        if not re.fullmatch(_HEADER_NAME, name) or name.lower() in _RESERVED:
            raise UsageError(
                f"the header {name!r} cannot be sent; expected a name of letters, digits and -_. "
                "that is not one of the protocol's own"
            )
        if not re.fullmatch(_HEADER_VALUE, value):
            raise UsageError(f"the header {name} is {value!r}; expected printable ASCII text")


@dataclass(frozen=True, slots=True)
class Access:
    """What a server asks of its clients: certificates in PEM files, and headers.

    `ca` signed the server's certificate, where the usual authorities did not; `certificate` and
    `key` are the client's own.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_headers(self.headers)
        if (self.certificate is None) != (self.key is None):
            raise UsageError("a client certificate and its key go together; give both or neither")
        for path in (self.ca, self.certificate, self.key):
            if path is not None and not path.is_file():
                raise UsageError(f"{path} is not a file; expected one in PEM form")
            if path is not None and not os.access(path, os.R_OK):
                raise BadInputError(f"{path} cannot be read: {os.strerror(errno.EACCES)}")

    def check(self, endpoint: Endpoint) -> None:
        """Raise UsageError for certificates without TLS, and for files that are none."""
        if not (self.ca or self.certificate):
            return
        if not endpoint.is_encrypted:
            raise UsageError(
                f"{endpoint} does not use TLS, so certificates have no use there; write "
                f"{endpoint.scheme}s:// or leave them out"
            )
        self._check_files()

    def _check_files(self) -> None:
        # Here for both protocols: grpc takes any file, and says later that no server answers.
        # Loaded only by who has certificates of his own.
        import ssl

        from minitron_trt.host.certificates import load_certificate

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            if self.ca is not None:
                context.load_verify_locations(self.ca)
        except ssl.SSLError as error:
            raise UsageError(f"{self.ca} is not a certificate in PEM form") from error
        if self.certificate is not None and self.key is not None:
            load_certificate(context, certificate=self.certificate, key=self.key)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long to wait, in seconds: for a whole answer, and for parts of it.

    `connect_s` is for the connection and what the model says about itself, `first_token_s` from
    then to the first of an answer, `between_tokens_s` from one to the next; None sets no limit of
    its own. `total_s` bounds them all, retries included.
    """

    total_s: float = 120.0
    connect_s: float = 5.0
    first_token_s: float | None = None
    between_tokens_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("total_s", "connect_s", "first_token_s", "between_tokens_s"):
            value = getattr(self, name)
            # Comparing this way round turns NaN away as well.
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"{name} is {value}; expected a number of seconds above 0")

    @property
    def probe_s(self) -> float:
        """Return how long to wait for the first sign of a server."""
        return min(self.connect_s, self.total_s)


@dataclass(frozen=True, slots=True)
class SizeLimits:
    """How much to take from a server: in one message, event or plain body, and in one answer.

    What is larger ends the request with a ProtocolError. Context logits of long prompts may need
    more than these.
    """

    message_bytes: int = 64 * 2**20
    answer_bytes: int = 2**30

    def __post_init__(self) -> None:
        for name in ("message_bytes", "answer_bytes"):
            value = getattr(self, name)
            # gRPC takes its limit as a C int.
            if not 0 < value < 2**31:
                raise UsageError(f"{name} is {value}; expected 1 to {2**31 - 1}")
