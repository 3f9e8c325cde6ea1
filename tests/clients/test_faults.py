"""Every error of the two libraries has a place in the table."""

from __future__ import annotations

import inspect

import httpx2
import pytest

from minitron_trt.clients.endpoint import Endpoint, Timeouts
from minitron_trt.clients.faults import GRPC_FAULTS, HTTP_FAULTS, Fault, server_error
from minitron_trt.clients.grpc_api import grpc
from minitron_trt.errors import RefusedError, ServerError, UnreachableError

# Raised when the library is used wrongly, which is a fault of ours and not the server's.
MISUSE = {
    "CookieConflict",
    "HTTPStatusError",
    "InvalidURL",
    "RequestNotRead",
    "ResponseNotRead",
    "StreamClosed",
    "StreamConsumed",
}


def test_every_grpc_status_has_a_fault() -> None:
    assert set(GRPC_FAULTS) == {code.name for code in grpc.StatusCode} - {"OK"}


def test_every_exception_of_httpx2_has_a_fault() -> None:
    classes = {
        kind
        for _, kind in inspect.getmembers(httpx2, inspect.isclass)
        if issubclass(kind, Exception) and not issubclass(kind, Warning)
    }
    leaves = {kind.__name__ for kind in classes if not (set(kind.__subclasses__()) & classes)}

    assert {name for name in leaves if "WebSocket" not in name} - MISUSE == set(HTTP_FAULTS)


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (
            Fault.ABSENT,
            UnreachableError,
            "no Triton server answers at grpc://a:1 ({x} y); expected Triton's gRPC service, "
            "usually port 8001 (its HTTP is 8000); start one with: minitron-trt serve, or correct "
            "the URL",
        ),
        (
            Fault.SILENT,
            UnreachableError,
            "no Triton server answers at grpc://a:1 (silent for 5 s); expected Triton's gRPC "
            "service, usually port 8001 (its HTTP is 8000); start one with: minitron-trt serve, or "
            "correct the URL",
        ),
        (
            Fault.SLOW,
            UnreachableError,
            "the answer from grpc://a:1 was not complete after 120 s; ask for fewer tokens or "
            "raise the timeout",
        ),
        (
            Fault.LOST,
            UnreachableError,
            "the connection to grpc://a:1 ended before the answer was complete ({x} y); look at "
            "the server's log, then try again",
        ),
        (Fault.REFUSED, RefusedError, "the server refused the request: {x} y"),
    ],
)
def test_a_fault_is_told_in_one_line(fault: Fault, error: type[ServerError], message: str) -> None:
    found = server_error(fault, " {x}\ny. ", Endpoint.parse("grpc://a:1"), Timeouts())

    assert (type(found), str(found)) == (error, message)


def test_a_reason_that_was_not_given_is_said_to_be_missing() -> None:
    found = server_error(Fault.REFUSED, "", Endpoint.parse("grpc://a:1"), Timeouts())

    assert str(found) == "the server refused the request: no reason given"
