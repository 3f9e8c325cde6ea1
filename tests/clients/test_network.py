"""What happens on the way: one table of faults over gRPC and HTTP, sync and async."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import pytest
from tests.clients.tcp_proxy import TcpProxy, tcp_proxy
from tests.patience import PATIENCE_S

from minitron_trt.clients.aio import AsyncClient
from minitron_trt.clients.client import Client
from minitron_trt.clients.endpoint import Timeouts
from minitron_trt.errors import ServerError, ServerTimeoutError, UnreachableError

if TYPE_CHECKING:
    from tests.clients.conftest import TritonDouble

# They wait for what never comes.
pytestmark = pytest.mark.slow

PATIENT: Final = Timeouts(PATIENCE_S, PATIENCE_S)
HURRIED: Final = Timeouts(PATIENCE_S, connect_s=1, first_token_s=1, between_tokens_s=1)
SHORT: Final = Timeouts(total_s=1.5, connect_s=1)
ABSENT: Final = (UnreachableError, "no Triton server answers at {url} (")
SILENT: Final = (UnreachableError, "no Triton server answers at {url} (silent for 1 s); ")
LOST: Final = (UnreachableError, "the connection to {url} ended before the answer was complete (")
LATE: Final = (ServerTimeoutError, "the next token from {url} did not come within 1 s; ")
SLOW: Final = (ServerTimeoutError, "the answer from {url} was not complete after 1.5 s; ")

# Fault, the limits, what is said when it strikes at once, and after the first piece.
FAULTS: Final[dict[str, tuple[Timeouts, tuple[Any, str], tuple[Any, str]]]] = {
    "cut": (PATIENT, ABSENT, LOST),
    "close": (PATIENT, ABSENT, LOST),
    "half-close": (PATIENT, ABSENT, LOST),
    "garbage": (PATIENT, ABSENT, LOST),
    "stall": (HURRIED, SILENT, LATE),
    "slow": (SHORT, SILENT, SLOW),
}
Stream = Callable[[str, Timeouts, Callable[[], object]], ServerError]


def stream_sync(url: str, timeouts: Timeouts, begun: Callable[[], object]) -> ServerError:
    """Return how an endless answer ends; call `begun` at its first piece."""
    with (
        Client.connect(url, timeouts=timeouts, max_retries=0) as client,
        client.stream("forever and") as pieces,
    ):
        try:
            next(pieces)
            begun()
            pieces.read()
        except ServerError as error:
            return error
    pytest.fail("the answer ended")


def stream_async(url: str, timeouts: Timeouts, begun: Callable[[], object]) -> ServerError:
    """Do the same with AsyncClient."""

    async def ask() -> ServerError:
        async with (
            AsyncClient.connect(url, timeouts=timeouts, max_retries=0) as client,
            client.stream("forever and") as pieces,
        ):
            try:
                await anext(pieces)
                begun()
                await pieces.read()
            except ServerError as error:
                return error
        pytest.fail("the answer ended")

    return asyncio.run(ask())


@pytest.fixture(params=[stream_sync, stream_async], ids=["sync", "async"])
def stream(request: pytest.FixtureRequest) -> Stream:
    """Each of the two clients in turn."""
    function: Stream = request.param
    return function


@pytest.fixture
def proxy(triton: TritonDouble) -> Iterator[TcpProxy]:
    """A proxy before each of the two doubles."""
    with tcp_proxy(int(triton.url.rpartition(":")[2])) as proxy:
        yield proxy


@pytest.fixture
def url(triton: TritonDouble, proxy: TcpProxy) -> str:
    """Where the double is, seen through the proxy."""
    return f"{triton.url.partition(':')[0]}://127.0.0.1:{proxy.port}"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_once_is_a_server_that_is_not_there(
    url: str, proxy: TcpProxy, stream: Stream, fault: str
) -> None:
    timeouts, (kind, words), _ = FAULTS[fault]
    proxy.fault = fault

    error = stream(url, timeouts, pytest.fail)

    assert (type(error), str(error)[: len(words.format(url=url))]) == (kind, words.format(url=url))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_after_pieces_is_told_as_what_it_is(
    url: str, proxy: TcpProxy, stream: Stream, fault: str
) -> None:
    timeouts, _, (kind, words) = FAULTS[fault]

    error = stream(url, timeouts, lambda: proxy.strike(fault))

    assert (type(error), str(error)[: len(words.format(url=url))]) == (kind, words.format(url=url))


def test_a_request_survives_the_restart_of_a_server(url: str, proxy: TcpProxy) -> None:
    async def ask() -> list[str]:
        async with AsyncClient.connect(url, timeouts=PATIENT) as client:
            before = await client.generate("say one")
            proxy.restart()
            return [before, await client.generate("say two")]

    with Client.connect(url, timeouts=PATIENT) as client:
        before = client.generate("say one")
        proxy.restart()
        after = client.generate("say two")

    assert [before, after] == asyncio.run(ask()) == ["one", "two"]
    assert proxy.accepted >= 4
