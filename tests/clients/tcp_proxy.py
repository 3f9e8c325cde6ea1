"""A TCP proxy that tests own: what is between client and server can be cut, held up or spoilt."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Final

_GARBAGE: Final = bytes(range(128, 256)) * 64
# A connection with this option is reset when it is closed, and not ended.
_RESET: Final = struct.pack("ii", 1, 0)
_AT_ONCE: Final = ("cut", "close", "half-close", "garbage")


class TcpProxy:
    """Passes bytes on to a port, until it is told to do otherwise to what the server sends.

    `fault` is for every connection: None, or cut (reset), close, half-close (the server's side
    only), stall, slow (a byte at a time) or garbage. With `is_tunnel`, HTTP's CONNECT comes first.
    """

    def __init__(self, target: int, *, is_tunnel: bool = False) -> None:
        self.port = 0
        self.fault: str | None = None
        self.accepted = 0
        self._target = target
        self._is_tunnel = is_tunnel
        self._clients: set[asyncio.StreamWriter] = set()
        self._opened: list[asyncio.StreamWriter] = []
        self._loop = asyncio.new_event_loop()

    def strike(self, fault: str) -> None:
        """Do something to the connections there are, and to those that come."""
        asyncio.run_coroutine_threadsafe(self._strike(fault), self._loop).result()

    def restart(self) -> None:
        """Reset every connection, and go on as before: what a server's restart looks like."""
        self.strike("cut")
        self.fault = None

    async def _strike(self, fault: str) -> None:
        self.fault = fault
        for client in list(self._clients):
            self._spoil(client)

    def _spoil(self, client: asyncio.StreamWriter) -> None:
        if self.fault == "cut":
            client.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            client.transport.abort()
        elif self.fault == "close":
            client.close()
        elif self.fault == "half-close":
            client.write_eof()
        elif self.fault == "garbage":
            client.write(_GARBAGE)

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._clients.add(client)
        self._opened.append(client)
        source, server = await asyncio.open_connection("127.0.0.1", self._target)
        self._opened.append(server)
        if self._is_tunnel:
            await reader.readuntil(b"\r\n\r\n")
            client.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        if self.fault in _AT_ONCE:
            self._spoil(client)
        try:
            with contextlib.suppress(OSError):
                await asyncio.gather(self._pass(reader, server), self._return(source, client))
        finally:
            self._clients.discard(client)
            server.close()
            client.close()

    async def _pass(self, reader: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            server.write(data)
        server.write_eof()

    async def _return(self, source: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            if self.fault == "stall":
                await asyncio.Event().wait()
            elif self.fault == "slow":
                for at in range(len(data)):
                    client.write(data[at : at + 1])
                    await asyncio.sleep(0.05)
            elif self.fault != "half-close":
                client.write(data)
                await client.drain()
        if client.can_write_eof() and not client.is_closing():
            client.write_eof()

    async def _run(self, started: threading.Event) -> None:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._stopping = asyncio.Event()
        started.set()
        await self._stopping.wait()
        # A connection that was accepted just now has its task in some turns, if the server is still
        # open: Python 3.11 leaves it behind, unclosed, where the server closed before.
        self._loop.remove_reader(server.sockets[0].fileno())
        await _several_turns()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        # Some have ended already, by the fault that a test asked for.
        await asyncio.gather(*tasks, return_exceptions=True)
        # What still has bytes to send would wait for a reader that is gone, and outlive the loop.
        for writer in self._opened:
            writer.transport.abort()
        # A transport takes two turns to let go of its socket.
        await _several_turns()


async def _several_turns() -> None:
    """Give the loop as many turns as a connection takes to begin or to end."""
    for _ in range(10):
        await asyncio.sleep(0)


@contextlib.contextmanager
def tcp_proxy(target: int, *, is_tunnel: bool = False) -> Iterator[TcpProxy]:
    """Run a proxy before a port of this machine."""
    proxy, started = TcpProxy(target, is_tunnel=is_tunnel), threading.Event()
    thread = threading.Thread(target=proxy._loop.run_until_complete, args=(proxy._run(started),))
    thread.start()
    started.wait()
    yield proxy
    proxy._loop.call_soon_threadsafe(proxy._stopping.set)
    thread.join()
    proxy._loop.close()
