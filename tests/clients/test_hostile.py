"""Servers that answer as none should: what users see, in all four forms, and in bounded time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import pytest
from tests.clients import hostile_grpc, hostile_http
from tests.clients.hostile_http import LIVE, LIVE_CASES, HostileServer
from tests.patience import PATIENCE_S

from minitron_trt.clients.aio import AsyncClient
from minitron_trt.clients.client import Client
from minitron_trt.clients.endpoint import SizeLimits, Timeouts
from minitron_trt.errors import (
    ProtocolError,
    RefusedError,
    RequestCancelledError,
    ServerError,
    ServerTimeoutError,
    UnreachableError,
)

pytestmark = pytest.mark.slow

LIMITS: Final = SizeLimits(message_bytes=2**20, answer_bytes=2**20)
SLOW: Final = (ServerTimeoutError, "was not complete after 6 s")
SILENT: Final = (UnreachableError, "silent for 2 s")
GARBLED: Final = (ProtocolError, "is not Triton's protocol")
LARGE: Final = (ProtocolError, "is too large")
LOST: Final = (UnreachableError, "ended before the answer was complete")
ABSENT: Final = (UnreachableError, "no Triton server answers at")
REFUSED: Final = (RefusedError, "the server refused the request: ")
Outcome = str | ServerError
Expected = str | tuple[type[ServerError], str]

HTTP: Final[dict[str, Expected]] = {
    "headers_slow": SLOW,
    "headers_endless": LOST,
    "header_noline": LOST,
    "sse_no_newline": LARGE,
    "sse_newlines_noevent": LARGE,
    "sse_slow": SLOW,
    "sse_forever_good": SLOW,
    "plain_endless": LARGE,
    "bad_utf8": "\ufffd\ufffd\ufffd",
    "bad_json": GARBLED,
    "deep_json": GARBLED,
    "deep_json_obj": GARBLED,
    "seq_str": GARBLED,
    "seq_list": GARBLED,
    "seq_neg": GARBLED,
    "seq_huge": GARBLED,
    "seq_float": GARBLED,
    "reason_obj": GARBLED,
    "outputs_weird": GARBLED,
    "text_num": GARBLED,
    "text_many": GARBLED,
    "text_none": GARBLED,
    "no_event": GARBLED,
    "surrogate": GARBLED,
    "nan": "a",
    "digits": GARBLED,
    "error_obj": (RefusedError, '{"a": ["b"]}'),
    "error_esc": (RefusedError, "bad\x1b]0;pwned\x07\x1b[2Jthing"),
    "text_esc": "hi\x1b]0;pwned\x07\x1b[2Jred\x9b31m\r\b",
    "big_chunk_hdr": SLOW,
    "neg_chunk": LOST,
    "trunc": LOST,
    "redirect_file": GARBLED,
    "redirect_http": GARBLED,
    "gzip_bomb": GARBLED,
    "gzip_bad": GARBLED,
    "enc_unknown": GARBLED,
    "status_999": GARBLED,
    "status_100s": SLOW,
    "http09": LOST,
    "charset": "aaa",
    "busy_page": (RefusedError, "HTTP 503 with text/html"),
    "web_page": GARBLED,
    "silent": SLOW,
    "close": LOST,
    "live_headers_slow": SILENT,
    "live_headers_endless": ABSENT,
    "live_header_noline": ABSENT,
    "live_plain_endless": LARGE,
    "live_silent": SILENT,
    "live_close": ABSENT,
    "live_redirect_file": ABSENT,
    "live_http09": ABSENT,
    "live_status_100s": SILENT,
    "live_gzip_bomb": GARBLED,
    "live_status_999": ABSENT,
}
GRPC: Final[dict[str, Expected]] = {
    "good": "hi",
    "wrong dtype": GARBLED,
    "unknown dtype": GARBLED,
    "wrong shape": "hi",
    "negative shape": "hi",
    "huge shape": "hi",
    "short raw": GARBLED,
    "empty raw": GARBLED,
    "no raw": GARBLED,
    "3 bytes raw": GARBLED,
    "more raws": "hi",
    "no text": GARBLED,
    "bad utf8": "\ufffd\ufffd\ufffd",
    "esc": "a\x1b]0;pwn\x07\x1b[2Jb",
    "error esc": (RefusedError, "bad\x1b[2J line2"),
    "never final": LOST,
    "no final param": "hi",
    "after final": GARBLED,
    "no responses": GARBLED,
    "endless": LARGE,
    "silent": SLOW,
    "seq dtype": GARBLED,
    "seq bytes": GARBLED,
    "seq empty": "hi",
    "odd fp32": GARBLED,
    "odd bf16": GARBLED,
    "reason int": GARBLED,
    "reason bad utf8": "hi",
    "contents not raw": "hi",
    "large": LARGE,
    "exception": REFUSED,
    **dict.fromkeys(hostile_grpc.CODES, REFUSED),
    "CANCELLED": (RequestCancelledError, "was cancelled before its answer was complete"),
    "UNAVAILABLE": LOST,
    "UNIMPLEMENTED": GARBLED,
}


@dataclass
class Outcomes:
    """What came of each case, with Client and with AsyncClient."""

    sync: dict[str, Outcome]
    asyncio: dict[str, Outcome]
    server: HostileServer | None = None


def settings(expected: Expected) -> dict[str, Any]:
    """Return how to connect: every case runs beside all others, so only what hangs is hurried."""
    # Enough to connect on a busy machine, which shows a slow answer as the fault and not the way.
    total_s = 6 if expected in (SLOW, SILENT) else PATIENCE_S
    connect_s = 2 if expected is SILENT else PATIENCE_S
    return {"timeouts": Timeouts(total_s, connect_s), "limits": LIMITS, "max_retries": 0}


def ask(url: str, prompt: str, expected: Expected) -> Outcome:
    try:
        with Client.connect(url, **settings(expected)) as client:
            return client.generate(prompt).text
    except ServerError as error:
        return error


async def ask_async(url: str, prompt: str, expected: Expected) -> Outcome:
    try:
        async with AsyncClient.connect(url, **settings(expected)) as client:
            return (await client.generate(prompt)).text
    except ServerError as error:
        return error


def ask_all(questions: dict[str, tuple[str, str, Expected]]) -> Outcomes:
    """Ask everything at once, in both forms; a question is a URL, a prompt and what it shows."""

    async def gather() -> list[Outcome]:
        return await asyncio.gather(*(ask_async(*each) for each in questions.values()))

    with ThreadPoolExecutor(len(questions) + 1) as threads:
        other = threads.submit(asyncio.run, gather())
        sync = list(threads.map(lambda each: ask(*each), questions.values()))
        found = other.result()
    return Outcomes(
        dict(zip(questions, sync, strict=True)),
        dict(zip(questions, found, strict=True)),
    )


@pytest.fixture(scope="module")
def http() -> Iterator[Outcomes]:
    """The outcomes of all cases over HTTP."""
    with hostile_http.hostile_http() as server:
        outcomes = ask_all({n: (f"{server.url}/{n}", "hello", HTTP[n]) for n in HTTP})
        outcomes.server = server
        yield outcomes


@pytest.fixture(scope="module")
def grpc() -> Iterator[Outcomes]:
    """The outcomes of all cases over gRPC."""
    # The server logs the exception that a case raises.
    logging.getLogger("grpc._server").disabled = True
    with hostile_grpc.hostile_grpc() as url:
        yield ask_all({name: (url, name, expected) for name, expected in GRPC.items()})
    logging.getLogger("grpc._server").disabled = False


def check(outcome: Outcome, expected: Expected) -> None:
    if isinstance(expected, str):
        assert outcome == expected
    else:
        kind, words = expected
        assert type(outcome) is kind, outcome
        assert words in str(outcome)
        assert "\n" not in str(outcome)


@pytest.mark.parametrize("case", HTTP)
def test_over_http_a_hostile_server_is_an_error_of_its_kind(http: Outcomes, case: str) -> None:
    check(http.sync[case], HTTP[case])
    check(http.asyncio[case], HTTP[case])


@pytest.mark.parametrize("case", GRPC)
def test_over_grpc_a_hostile_server_is_an_error_of_its_kind(grpc: Outcomes, case: str) -> None:
    check(grpc.sync[case], GRPC[case])
    check(grpc.asyncio[case], GRPC[case])


def test_both_forms_use_the_same_words(http: Outcomes, grpc: Outcomes) -> None:
    for outcomes in (http, grpc):
        assert {name: str(each) for name, each in outcomes.sync.items()} == {
            name: str(each) for name, each in outcomes.asyncio.items()
        }


def test_every_case_has_its_expectation() -> None:
    assert set(HTTP) == {*hostile_http.CASES, *(LIVE + name for name in LIVE_CASES)}
    assert set(GRPC) == {*hostile_grpc.CASES, "silent", "exception", *hostile_grpc.CODES}


def test_an_endless_body_is_not_taken_in(http: Outcomes) -> None:
    # Each form takes its limit, and what the sockets between hold.
    assert http.server is not None
    assert max(http.server.sent.values()) < 2 * 16 * 2**20
