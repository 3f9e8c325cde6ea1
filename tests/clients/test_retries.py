"""Which failures are tried again, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from typing import TYPE_CHECKING, Any

import pytest

from minitron_trt.clients.aio import AsyncClient
from minitron_trt.clients.client import Client
from minitron_trt.clients.deadlines import Deadlines
from minitron_trt.clients.endpoint import Timeouts
from minitron_trt.clients.messages import Chunk, GenerateRequest
from minitron_trt.clients.retries import Retries
from minitron_trt.clients.transport import AsyncEchoTransport, EchoTransport
from minitron_trt.errors import RefusedError, ServerError, UnreachableError, UsageError

if TYPE_CHECKING:
    from tests.clients.conftest import Ask, TritonDouble


def passing(kind: type[ServerError] = UnreachableError) -> ServerError:
    error = kind("gone")
    error.is_passing = True
    return error


class Failing(EchoTransport):
    """Fails so many times, before its first chunk or after it."""

    def __init__(self, error: ServerError, times: int, *, after_chunk: bool = False) -> None:
        super().__init__()
        self.error, self.times, self.after_chunk = error, times, after_chunk
        self.tries = 0

    def stream(
        self, request: GenerateRequest, deadlines: Deadlines
    ) -> Generator[Chunk, None, None]:
        self.tries += 1
        if self.after_chunk:
            yield Chunk("first")
        if self.tries <= self.times:
            raise self.error
        yield from super().stream(request, deadlines)


class AsyncFailing(AsyncEchoTransport):
    """The same for AsyncClient."""

    def __init__(self, error: ServerError, times: int, *, after_chunk: bool = False) -> None:
        super().__init__()
        self.failing = Failing(error, times, after_chunk=after_chunk)

    async def stream(
        self, request: GenerateRequest, deadlines: Deadlines
    ) -> AsyncGenerator[Chunk, None]:
        for chunk in self.failing.stream(request, deadlines):
            yield chunk


def tries(transport: Failing, other: AsyncFailing, **settings: Any) -> tuple[object, int]:
    """Return what both clients make of a transport, which is the same, and in how many tries."""

    async def ask() -> object:
        try:
            return await AsyncClient(other, **settings).generate("one two")
        except ServerError as error:
            return error

    try:
        outcome: object = Client(transport, **settings).generate("one two")
    except ServerError as error:
        outcome = error
    assert (asyncio.run(ask()), other.failing.tries) == (outcome, transport.tries)
    return outcome, transport.tries


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "times", "after_chunk", "retries", "succeeds", "made"),
    [
        (passing(), 2, False, 2, True, 3),
        (passing(), 3, False, 2, False, 3),
        (passing(), 1, False, 0, False, 1),
        (passing(), 1, True, 2, False, 1),
        (passing(RefusedError), 1, False, 2, True, 2),
        (UnreachableError("not Triton"), 1, False, 2, False, 1),
        (RefusedError("top_k"), 1, False, 2, False, 1),
    ],
    ids=["passes", "stays", "none wanted", "begun", "busy", "another server", "refused"],
)
def test_what_may_pass_is_tried_again_before_the_first_token(
    error: ServerError, times: int, after_chunk: bool, retries: int, succeeds: bool, made: int
) -> None:
    transports = (kind(error, times, after_chunk=after_chunk) for kind in (Failing, AsyncFailing))

    outcome, found = tries(*transports, max_retries=retries)  # type: ignore[arg-type]

    assert (outcome == "one two", found) == (succeeds, made)
    assert succeeds or outcome is error


def test_waits_grow_and_are_not_the_same_for_all() -> None:
    deadlines = Deadlines(Timeouts())
    deadlines.begin()
    retries = Retries(10)

    waits = [[retries.delay_s(passing(), n, deadlines) or 0 for n in range(8)] for _ in range(20)]

    for n, column in enumerate(zip(*waits, strict=True)):
        longest = min(0.25 * 2**n, 4.0)
        assert longest / 2 <= min(column) < max(column) <= longest


def test_nobody_waits_beyond_the_deadline() -> None:
    deadlines = Deadlines(Timeouts(total_s=0.05))
    deadlines.begin()

    assert Retries(5).delay_s(passing(), 0, deadlines) is None


@pytest.mark.parametrize("most", [-1, 1.5, True])
def test_the_number_of_retries_is_a_whole_one(most: int) -> None:
    with pytest.raises(UsageError, match=r"max_retries is .*; expected 0 or more"):
        Client(EchoTransport(), max_retries=most)


@pytest.mark.parametrize(
    "reply",
    [("application/json", b'{"error": "too many requests"}'), ("text/html", b"<html>Busy</html>")],
    ids=["Triton", "a proxy"],
)
def test_a_server_that_is_busy_over_http_is_asked_again(
    triton_http: TritonDouble, reply: tuple[str, bytes]
) -> None:
    triton_http.busy, triton_http.busy_reply = 1, reply

    with Client.connect(triton_http.url) as client:
        assert client.generate("say hi") == "hi"
    assert len(triton_http.requests) == 2


def test_a_full_queue_is_asked_again_whatever_the_status(triton: TritonDouble, ask: Ask) -> None:
    """As an ensemble answers: in a stream, in words alone."""
    triton.busy = 1

    assert ask(triton.url, GenerateRequest("full of hope")) == ["of ", "hope"]
    assert len(triton.requests) == 2
