"""Connections in asyncio whose every wait ends by the deadlines of the request under way.

They are asyncio's own transports. anyio's streams, which httpcore would open, begin and end to
watch the socket for every read, and enter a scope for its time: a third of what a token takes.
asyncio's streams forget what came before a reset.
"""

from __future__ import annotations

import asyncio
import select
import ssl
from collections.abc import Iterable
from typing import Any, Final, cast

import httpcore2

from minitron_trt.clients.network import seconds_left

# A reader that takes its time holds the server up, and not more than about this in memory.
_HELD_BYTES: Final = 64 * 1024
# After so long another address of the same name is tried beside the first (RFC 8305).
_NEXT_ADDRESS_S: Final = 0.25


class _StreamProtocol(asyncio.Protocol):
    """What a connection has brought and nobody has read yet; one reader or writer waits for it."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.received = bytearray()
        self.is_over = False
        self.is_full = False
        self.error: Exception | None = None
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None

    async def change(self, seconds: float) -> None:
        """Wait until something has come or gone, or for so long."""
        self._waiter = self._loop.create_future()
        alarm = self._loop.call_later(seconds, self._wake)
        try:
            await self._waiter
        finally:
            alarm.cancel()

    def take(self, max_bytes: int) -> bytes:
        """Return what has come."""
        data = bytes(self.received[:max_bytes])
        del self.received[:max_bytes]
        # Where nothing was paused this does nothing.
        self.transport.resume_reading()
        return data

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's has the methods of one, and is none.
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if len(self.received) > _HELD_BYTES:
            self.transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        self.is_over = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_over = True
        self.error = exc
        self._wake()

    def pause_writing(self) -> None:
        self.is_full = True

    def resume_writing(self) -> None:
        self.is_full = False
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class AsyncBoundedStream(httpcore2.AsyncNetworkStream):
    """A connection that asks the deadlines before it waits, in asyncio."""

    def __init__(self, protocol: _StreamProtocol) -> None:
        self._protocol = protocol

    async def read(self, max_bytes: int, timeout: Any = None) -> bytes:
        """Return what has come."""
        protocol = self._protocol
        while True:
            # Asked first: what drips is always there.
            seconds = seconds_left(timeout, httpcore2.ReadTimeout)
            if protocol.received:
                return protocol.take(max_bytes)
            if protocol.is_over:
                break
            await protocol.change(seconds)
        if protocol.error is not None:
            raise httpcore2.ReadError(protocol.error) from protocol.error
        return b""

    async def write(self, buffer: bytes, timeout: Any = None) -> None:
        """Send all, and wait while the server takes less than it is sent."""
        protocol = self._protocol
        if not protocol.is_over:
            protocol.transport.write(buffer)
        while True:
            seconds = seconds_left(timeout, httpcore2.WriteTimeout)
            if protocol.is_over:
                raise httpcore2.WriteError(protocol.error or "closed") from protocol.error
            if not protocol.is_full:
                return
            await protocol.change(seconds)

    async def aclose(self) -> None:
        """Hang up."""
        # close() would wait for the server's end of TLS (close_notify), 30 s for a silent one.
        self._protocol.transport.abort()
        # The socket closes as the loop goes round.
        await asyncio.sleep(0)

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: Any = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Return the same connection inside TLS."""
        protocol = self._protocol
        seconds = seconds_left(timeout, httpcore2.ConnectTimeout)
        if protocol.received:
            # It would be read as if it had come inside TLS.
            await self.aclose()
            raise httpcore2.ConnectError("something came before TLS began")
        if protocol.is_over:
            raise httpcore2.ConnectError(protocol.error or "closed") from protocol.error
        try:
            transport = await asyncio.get_running_loop().start_tls(
                protocol.transport,
                protocol,
                ssl_context,
                server_hostname=server_hostname,
                ssl_handshake_timeout=seconds,
            )
        except OSError as error:
            await self.aclose()
            raise httpcore2.ConnectError(error) from error
        assert transport is not None
        protocol.transport = transport
        return self

    def get_extra_info(self, info: str) -> Any:
        """Return what the transport knows, and whether there is something to read."""
        if info == "is_readable":
            return bool(self._protocol.received) or self._protocol.is_over or self._is_readable()
        return self._protocol.transport.get_extra_info(info)

    def _is_readable(self) -> bool:
        # The server may have hung up since the loop last looked.
        poller = select.poll()
        poller.register(self._protocol.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poller.poll(0))


class AsyncBoundedBackend(httpcore2.AsyncNetworkBackend):
    """Opens connections whose waits are bounded, in asyncio."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: Any = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> AsyncBoundedStream:
        """Return a connection to a port."""
        loop = asyncio.get_running_loop()
        # uvloop has no such option: it tries a name's addresses one after another.
        is_own = isinstance(loop, asyncio.BaseEventLoop)
        eyeballs: dict[str, Any] = {"happy_eyeballs_delay": _NEXT_ADDRESS_S} if is_own else {}
        try:
            async with asyncio.timeout(seconds_left(timeout, httpcore2.ConnectTimeout)):
                transport, protocol = await loop.create_connection(
                    _StreamProtocol,
                    host,
                    port,
                    local_addr=(local_address, 0) if local_address else None,
                    **eyeballs,
                )
        # Before OSError, of which TimeoutError is a kind.
        except TimeoutError as error:
            raise httpcore2.ConnectTimeout(error) from error
        except OSError as error:
            raise httpcore2.ConnectError(error) from error
        for option in socket_options or ():
            transport.get_extra_info("socket").setsockopt(*option)
        return AsyncBoundedStream(protocol)
