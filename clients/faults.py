"""What can go wrong between client and server, and the one table that names it for the user."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final, TypeAlias

from minitron_trt.clients.endpoint import Endpoint, Timeouts
from minitron_trt.errors import RefusedError, ServerError, UnreachableError

_NOT_THERE = "expected {service}; start one with: minitron-trt serve, or correct the URL"


class Fault(Enum):
    """The kinds of failure a user can tell apart; the value is the message."""

    ABSENT = "no Triton server answers at {url} ({detail}); " + _NOT_THERE
    SILENT = "no Triton server answers at {url} (silent for {probe_s:g} s); " + _NOT_THERE
    SLOW = (
        "the answer from {url} was not complete after {request_s:g} s; "
        "ask for fewer tokens or raise the timeout"
    )
    LOST = (
        "the connection to {url} ended before the answer was complete ({detail}); "
        "look at the server's log, then try again"
    )
    REFUSED = "the server refused the request: {detail}"


Faults: TypeAlias = Mapping[str, tuple[Fault, Fault]]
"""By foreign name: the fault while looking for a server, and once a request is under way."""

GRPC_FAULTS: Final[Faults] = MappingProxyType(
    {
        "UNAVAILABLE": (Fault.ABSENT, Fault.LOST),
        "DEADLINE_EXCEEDED": (Fault.SILENT, Fault.SLOW),
        "CANCELLED": (Fault.ABSENT, Fault.LOST),
        # gRPC, but another service; HTTP servers are reported in these ways too.
        "UNIMPLEMENTED": (Fault.ABSENT, Fault.ABSENT),
        "UNKNOWN": (Fault.ABSENT, Fault.REFUSED),
        "INTERNAL": (Fault.ABSENT, Fault.REFUSED),
        **dict.fromkeys(
            (
                "INVALID_ARGUMENT",
                "NOT_FOUND",
                "ALREADY_EXISTS",
                "PERMISSION_DENIED",
                "UNAUTHENTICATED",
                "RESOURCE_EXHAUSTED",
                "FAILED_PRECONDITION",
                "ABORTED",
                "OUT_OF_RANGE",
                "DATA_LOSS",
            ),
            (Fault.REFUSED, Fault.REFUSED),
        ),
    }
)
"""By the name of a gRPC status code."""

HTTP_FAULTS: Final[Faults] = MappingProxyType(
    {
        "ConnectError": (Fault.ABSENT, Fault.ABSENT),
        "ConnectTimeout": (Fault.SILENT, Fault.SILENT),
        "ProxyError": (Fault.ABSENT, Fault.ABSENT),
        "UnsupportedProtocol": (Fault.ABSENT, Fault.ABSENT),
        "ReadTimeout": (Fault.SILENT, Fault.SLOW),
        "WriteTimeout": (Fault.SILENT, Fault.SLOW),
        "PoolTimeout": (Fault.SILENT, Fault.SLOW),
        "ReadError": (Fault.ABSENT, Fault.LOST),
        "WriteError": (Fault.ABSENT, Fault.LOST),
        "CloseError": (Fault.ABSENT, Fault.LOST),
        "LocalProtocolError": (Fault.ABSENT, Fault.LOST),
        "RemoteProtocolError": (Fault.ABSENT, Fault.LOST),
        "SSEError": (Fault.ABSENT, Fault.LOST),
        "DecodingError": (Fault.ABSENT, Fault.LOST),
        "TooManyRedirects": (Fault.ABSENT, Fault.ABSENT),
    }
)
"""By the name of an exception class of httpx2."""


class BrokenProtocolError(Exception):
    """What arrived breaks the protocol; the transport, which knows the URL, words the error."""

    def __init__(self, fault: Fault, detail: str) -> None:
        super().__init__(detail)
        self.fault = fault


def server_error(fault: Fault, detail: str, endpoint: Endpoint, timeouts: Timeouts) -> ServerError:
    """Return the error for a fault, worded for the user in one line."""
    if fault is Fault.REFUSED:
        return refusal(detail)
    message = fault.value.format(
        url=endpoint,
        detail=_one_line(detail),
        service="Triton's gRPC service, usually port 8001 (its HTTP is 8000)"
        if endpoint.is_grpc
        else "Triton's HTTP service, usually port 8000 (its gRPC is 8001)",
        probe_s=timeouts.probe_s,
        request_s=timeouts.request_s,
    )
    return UnreachableError(message)


def refusal(detail: str) -> RefusedError:
    """Return the error for what the server itself said."""
    return RefusedError(Fault.REFUSED.value.format(detail=_one_line(detail)))


def _one_line(text: str) -> str:
    return " ".join(text.split()).rstrip(".") or "no reason given"
