"""Connections in asyncio: what nobody reads holds the server up; faults in the system's words.

`make test-uvloop` has them on uvloop's event loop, too.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final, NoReturn, Protocol, TypeVar

import httpcore2
import pytest
from tests.patience import PATIENCE_S

from minitron_trt.clients.deadlines import Deadlines
from minitron_trt.clients.endpoint import Timeouts
from minitron_trt.clients.network import SOCKET_OPTIONS, system_reason
from minitron_trt.clients.network_asyncio import AsyncBoundedBackend, AsyncBoundedStream

T = TypeVar("T")
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
# More than the sockets between hold.
MUCH: Final = 64 * 2**20


class Run(Protocol):
    """Runs a coroutine to its end, as asyncio.run does."""

    def __call__(self, main: Coroutine[Any, Any, T]) -> T: ...


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """The event loop of asyncio's own, and the one that others take in its place."""
    maker = pytest.importorskip(request.param, reason="UVLOOP IS NOT TESTED: make test-uvloop does")

    def run_there(main: Coroutine[Any, Any, T]) -> T:
        with asyncio.Runner(loop_factory=maker.new_event_loop) as runner:
            return runner.run(main)

    return run_there


def deadlines(total_s: float = PATIENCE_S) -> Deadlines:
    begun = Deadlines(Timeouts(total_s, total_s))
    begun.begin()
    return begun


@asynccontextmanager
async def connected(serve: Serve) -> AsyncIterator[AsyncBoundedStream]:
    """Connect to a server that does this with each connection."""
    is_done = asyncio.Event()

    async def serve_and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        finally:
            writer.transport.abort()
            is_done.set()

    server = await asyncio.start_server(serve_and_close, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        stream = await AsyncBoundedBackend().connect_tcp(
            host, port, deadlines(), socket_options=SOCKET_OPTIONS
        )
        try:
            yield stream
        finally:
            await stream.aclose()
            await is_done.wait()


def reset(writer: asyncio.StreamWriter) -> None:
    """Have a connection end with a reset."""
    # Without lingering a close is one.
    linger = b"\1\0\0\0\0\0\0\0"
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


def test_a_reader_that_takes_its_time_holds_the_server_up_and_gets_everything(run: Run) -> None:
    async def read() -> tuple[bool, int]:
        all_sent = asyncio.Event()

        async def send(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(bytes(MUCH))
            await writer.drain()
            all_sent.set()
            writer.close()
            await writer.wait_closed()

        async with connected(send) as stream:
            size = len(await stream.read(1, deadlines()))
            # Time enough to take all in, for one that would.
            await asyncio.wait({asyncio.ensure_future(all_sent.wait())}, timeout=0.5)
            was_sent = all_sent.is_set()
            while data := await stream.read(2**20, deadlines()):
                assert len(data) <= 2**20
                size += len(data)
            return was_sent, size

    assert run(read()) == (False, MUCH)


def test_a_writer_waits_until_all_is_taken_and_no_longer_than_its_deadline(run: Run) -> None:
    async def write() -> int:
        sizes: asyncio.Queue[int] = asyncio.Queue()

        async def take(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
            sizes.put_nowait(len(await reader.readexactly(MUCH)))
            await sizes.join()

        async with connected(take) as stream:
            await stream.write(bytes(MUCH), deadlines())
            size = await sizes.get()
            # Nobody reads now.
            with pytest.raises(httpcore2.WriteTimeout):
                await stream.write(bytes(MUCH), deadlines(0.2))
            sizes.task_done()
            return size

    assert run(write()) == MUCH


def test_a_reset_is_told_to_who_reads_and_to_who_writes(run: Run) -> None:
    async def read() -> str:
        async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            reset(writer)

        async with connected(close) as stream:
            with pytest.raises(httpcore2.ReadError) as raised:
                await stream.read(100, deadlines())
            with pytest.raises(httpcore2.WriteError):
                await stream.write(b"x", deadlines())
            return system_reason(raised.value)

    assert run(read()) == "Connection reset by peer"


async def write_on(stream: AsyncBoundedStream) -> NoReturn:
    """Write until the connection has ended."""
    while True:
        await stream.write(b"x", deadlines())
        await asyncio.sleep(0)


def test_what_came_before_a_reset_is_read(run: Run) -> None:
    async def read() -> tuple[bytes, str]:
        async def answer_and_reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"an answer")
            reset(writer)

        async with connected(answer_and_reset) as stream:
            data = await stream.read(2, deadlines())
            with pytest.raises(httpcore2.WriteError):
                await write_on(stream)
            data += await stream.read(100, deadlines())
            with pytest.raises(httpcore2.ReadError) as raised:
                await stream.read(100, deadlines())
            return data, system_reason(raised.value)

    assert run(read()) == (b"an answer", "Connection reset by peer")


def test_an_idle_connection_that_the_server_ended_can_be_told(run: Run) -> None:
    async def look() -> tuple[bool, bool]:
        async def hold(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
            await reader.read(1)

        async with connected(hold) as stream:
            before = stream.get_extra_info("is_readable")
            await stream.write(b"x", deadlines())
            while not stream.get_extra_info("is_readable"):
                await asyncio.sleep(0)
            return before, await stream.read(1, deadlines()) == b""

    assert run(look()) == (False, True)


def tls_refusal(run: Run, serve: Serve, said: list[bytes]) -> str:
    """Return why TLS does not begin with a server that has said this."""

    async def begin() -> str:
        async with connected(serve) as stream:
            assert [await stream.read(2, deadlines()) for _ in said] == said
            with pytest.raises(httpcore2.ConnectError) as raised:
                await stream.start_tls(ssl.create_default_context(), "localhost", deadlines())
            return str(raised.value)

    return run(begin())


def test_what_came_before_tls_is_not_taken_for_what_came_inside(run: Run) -> None:
    """A proxy could say it behind its word that the server is connected."""

    async def say_more(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"ok, and an answer")
        await reader.read()

    assert tls_refusal(run, say_more, [b"ok"]) == "something came before TLS began"


def test_tls_does_not_begin_where_the_server_has_hung_up(run: Run) -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"ok")
        writer.close()
        await writer.wait_closed()

    assert tls_refusal(run, hang_up, [b"ok", b""]) == "closed"


def test_a_name_whose_addresses_all_refuse_is_told_as_one_is(
    closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
    found = [(*kind, (f"127.0.0.{last}", closed_port)) for last in (1, 2)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    connecting = AsyncBoundedBackend().connect_tcp("several.test", closed_port, deadlines())

    with pytest.raises(httpcore2.ConnectError, match="Multiple exceptions") as raised:
        asyncio.run(connecting)
    assert system_reason(raised.value) == "Connection refused"


def test_several_addresses_that_refuse_are_told_as_one_is() -> None:
    error = OSError(
        "Multiple exceptions: [Errno 111] Connect call failed ('::1', 1, 0, 0), "
        "[Errno 113] Connect call failed ('127.0.0.1', 1)"
    )

    assert system_reason(error) == "Connection refused"
