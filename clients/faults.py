"""What can go wrong between client and server, and the one table that names it for the user."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final, TypeAlias

from minitron_trt.clients.endpoint import Endpoint, Timeouts
from minitron_trt.clients.messages import INPUT_NAMES
from minitron_trt.errors import (
    ProtocolError,
    RefusedError,
    RequestCancelledError,
    ServerError,
    ServerTimeoutError,
    UnreachableError,
)

_NOT_THERE = "expected {service}; start one with: minitron-trt serve, or correct the URL"


class Fault(Enum):
    """The kinds of failure a user can tell apart; the value is the message."""

    ABSENT = "no Triton server answers at {url} ({detail}); " + _NOT_THERE
    SILENT = "no Triton server answers at {url} (silent for {probe_s:g} s); " + _NOT_THERE
    LATE_FIRST = (
        "the first token from {url} did not come within {first_token_s:g} s; "
        "look whether the server is busy, or raise the timeout"
    )
    LATE_NEXT = (
        "the next token from {url} did not come within {between_tokens_s:g} s; "
        "look whether the server is busy, or raise the timeout"
    )
    SLOW = (
        "the answer from {url} was not complete after {total_s:g} s; "
        "ask for fewer tokens or raise the timeout"
    )
    LOST = (
        "the connection to {url} ended before the answer was complete ({detail}); "
        "look at the server's log, then try again"
    )
    GARBLED = (
        "what {url} answers is not Triton's protocol ({detail}); "
        "look at the server's version, and at what lies between"
    )
    TOO_LARGE = "what {url} answers is too large ({detail}); raise the client's limits to take it"
    CANCELLED = "the request to {url} was cancelled before its answer was complete"
    REFUSED = "the server refused the request: {detail}"


_ERRORS: Final[Mapping[Fault, type[ServerError]]] = MappingProxyType(
    {
        Fault.ABSENT: UnreachableError,
        Fault.SILENT: UnreachableError,
        Fault.LATE_FIRST: ServerTimeoutError,
        Fault.LATE_NEXT: ServerTimeoutError,
        Fault.SLOW: ServerTimeoutError,
        Fault.LOST: UnreachableError,
        Fault.GARBLED: ProtocolError,
        Fault.TOO_LARGE: ProtocolError,
        Fault.CANCELLED: RequestCancelledError,
    }
)

Faults: TypeAlias = Mapping[str, tuple[Fault, Fault]]
"""By foreign name: the fault while looking for a server, and once a request is under way."""

GRPC_FAULTS: Final[Faults] = MappingProxyType(
    {
        "UNAVAILABLE": (Fault.ABSENT, Fault.LOST),
        "CANCELLED": (Fault.ABSENT, Fault.CANCELLED),
        # gRPC, but another service; HTTP servers are reported in these ways too. Of a request under
        # way UNKNOWN and INTERNAL are Triton's own codes for errors of a model.
        "UNIMPLEMENTED": (Fault.ABSENT, Fault.GARBLED),
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
                # The client's own deadline is told apart by its clock.
                "DEADLINE_EXCEEDED",
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
        "ConnectionNotAvailable": (Fault.ABSENT, Fault.LOST),
        "ProxyError": (Fault.ABSENT, Fault.ABSENT),
        "UnsupportedProtocol": (Fault.ABSENT, Fault.ABSENT),
        "ReadTimeout": (Fault.SILENT, Fault.SLOW),
        "WriteTimeout": (Fault.SILENT, Fault.SLOW),
        "PoolTimeout": (Fault.SILENT, Fault.SLOW),
        "ReadError": (Fault.ABSENT, Fault.LOST),
        "WriteError": (Fault.ABSENT, Fault.LOST),
        "LocalProtocolError": (Fault.ABSENT, Fault.LOST),
        "RemoteProtocolError": (Fault.ABSENT, Fault.LOST),
    }
)
"""By the name of an exception class of httpcore2."""

# Compiled when something went wrong, as those below.
_FIELD: Final = (
    r"(?:^|[ '\"])(" + "|".join(sorted(INPUT_NAMES)) + r")"
    r"(?:['\"]| (?:is|are|has|have|must|needs) )"
)


# What full queues say, Triton's and those of the runtimes here: an ensemble, and a stream over
# gRPC, keep the words and lose the status.
_FULL: Final = "(?i)exceeds maximum queue size|try again later"
# The libraries say the same in words of their own.
_WORDS: Final = (
    ("(?i)peer closed|disconnected without|socket closed|socket is closed", "closed"),
    ("(?i)connection reset|reset by peer|broken pipe", "reset"),
)


class BrokenProtocolError(Exception):
    """What arrived breaks the protocol; the transport, which knows the URL, words the error."""

    def __init__(self, detail: str, fault: Fault = Fault.GARBLED) -> None:
        super().__init__(detail)
        self.fault = fault


def server_error(fault: Fault, detail: str, endpoint: Endpoint, timeouts: Timeouts) -> ServerError:
    """Return the error for a fault, worded for the user in one line."""
    if fault is Fault.REFUSED:
        return refusal(detail)
    if fault is Fault.LOST:
        words = (words for pattern, words in _WORDS if re.search(pattern, detail))
        detail = f"connection {word}" if (word := next(words, None)) else detail
    message = fault.value.format(
        url=endpoint,
        detail=_one_line(detail),
        service="Triton's gRPC service, usually port 8001 (its HTTP is 8000)"
        if endpoint.is_grpc
        else "Triton's HTTP service, usually port 8000 (its gRPC is 8001)",
        probe_s=timeouts.probe_s,
        first_token_s=timeouts.first_token_s or 0,
        between_tokens_s=timeouts.between_tokens_s or 0,
        total_s=timeouts.total_s,
    )
    return _ERRORS[fault](message)


def refusal(detail: str) -> RefusedError:
    """Return the error for what the server itself said; one that is full may be asked again."""
    named = re.search(_FIELD, detail)
    error = RefusedError(
        Fault.REFUSED.value.format(detail=_one_line(detail)), field=named and named[1]
    )
    error.is_passing = re.search(_FULL, detail) is not None
    return error


def _one_line(text: str) -> str:
    return " ".join(text.split()).rstrip(".") or "no reason given"
