"""Every error of the two libraries has a place in the table."""

from __future__ import annotations

import inspect

import httpcore2
import pytest

from minitron_trt.clients.endpoint import Endpoint, Timeouts
from minitron_trt.clients.faults import GRPC_FAULTS, HTTP_FAULTS, Fault, refusal, server_error
from minitron_trt.clients.grpc_api import grpc
from minitron_trt.errors import (
    ProtocolError,
    RefusedError,
    RequestCancelledError,
    ServerError,
    ServerTimeoutError,
    UnreachableError,
)


def test_every_grpc_status_has_a_fault() -> None:
    assert set(GRPC_FAULTS) == {code.name for code in grpc.StatusCode} - {"OK"}


def test_every_exception_of_httpcore2_has_a_fault() -> None:
    classes = {
        kind
        for _, kind in inspect.getmembers(httpcore2, inspect.isclass)
        if issubclass(kind, Exception)
    }
    leaves = {kind.__name__ for kind in classes if not (set(kind.__subclasses__()) & classes)}

    assert leaves == set(HTTP_FAULTS)


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
            ServerTimeoutError,
            "the answer from grpc://a:1 was not complete after 120 s; ask for fewer tokens or "
            "raise the timeout",
        ),
        (
            Fault.LOST,
            UnreachableError,
            "the connection to grpc://a:1 ended before the answer was complete ({x} y); look at "
            "the server's log, then try again",
        ),
        (
            Fault.LATE_FIRST,
            ServerTimeoutError,
            "the first token from grpc://a:1 did not come within 2 s; look whether the server is "
            "busy, or raise the timeout",
        ),
        (
            Fault.LATE_NEXT,
            ServerTimeoutError,
            "the next token from grpc://a:1 did not come within 0.5 s; look whether the server is "
            "busy, or raise the timeout",
        ),
        (
            Fault.GARBLED,
            ProtocolError,
            "what grpc://a:1 answers is not Triton's protocol ({x} y); look at the server's "
            "version, and at what lies between",
        ),
        (
            Fault.TOO_LARGE,
            ProtocolError,
            "what grpc://a:1 answers is too large ({x} y); raise the client's limits to take it",
        ),
        (
            Fault.CANCELLED,
            RequestCancelledError,
            "the request to grpc://a:1 was cancelled before its answer was complete",
        ),
        (Fault.REFUSED, RefusedError, "the server refused the request: {x} y"),
    ],
)
def test_a_fault_is_told_in_one_line(fault: Fault, error: type[ServerError], message: str) -> None:
    timeouts = Timeouts(first_token_s=2, between_tokens_s=0.5)

    found = server_error(fault, " {x}\ny. ", Endpoint.parse("grpc://a:1"), timeouts)

    assert (type(found), str(found)) == (error, message)


def test_a_reason_that_was_not_given_is_said_to_be_missing() -> None:
    found = server_error(Fault.REFUSED, "", Endpoint.parse("grpc://a:1"), Timeouts())

    assert str(found) == "the server refused the request: no reason given"


@pytest.mark.parametrize(
    ("reason", "field"),
    [
        ("in ensemble 'ensemble', temperature is 3; expected 0 to 2", "temperature"),
        ("unexpected inference input 'seed' for model 'ensemble'", "seed"),
        ("runtime_top_k is -3; expected 0 or more", "runtime_top_k"),
        ("Exceeds maximum queue size", None),
        ("the stream of requests is over", None),
    ],
)
def test_a_refusal_names_the_option_that_the_server_names(reason: str, field: str | None) -> None:
    assert refusal(reason).field == field


@pytest.mark.parametrize(
    ("reason", "is_passing"),
    [
        ("[request id: 7e7d] Exceeds maximum queue size", True),
        (
            "in ensemble 'ensemble', 1 requests are waiting, as many as max_queue_size allows; try "
            "again later",
            True,
        ),
        ("5 requests are running or waiting; try again later", True),
        ("in ensemble 'ensemble', temperature is 3; expected 0 to 2", False),
    ],
)
def test_a_full_queue_may_be_asked_again(reason: str, *, is_passing: bool) -> None:
    assert refusal(reason).is_passing == is_passing
