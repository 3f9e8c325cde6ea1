"""Connections whose every wait ends by the deadlines of the request under way.

httpcore hands a request's timeouts through to the connection as they are. Here they are a
`Deadlines`, asked anew at each read and write: a limit of seconds would begin anew with every byte.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
from collections.abc import Iterable
from typing import Any, Final

import httpcore2

from minitron_trt.clients.deadlines import Deadlines
from minitron_trt.clients.endpoint import Access, Endpoint

# A connection that has died without a word is found within about two minutes.
SOCKET_OPTIONS: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 20),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
LIBRARY_ERRORS: Final = (
    httpcore2.ConnectionNotAvailable,
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.ProxyError,
    httpcore2.TimeoutException,
    httpcore2.UnsupportedProtocol,
)
# Servers, and proxies between, close idle connections: a request on one that is just being closed
# fails. A new connection costs less than that.
_KEEPALIVE_S: Final = 15.0
# httpcore begins a limit anew with each part that the socket takes; between these parts the
# deadlines are asked.
_WRITE_BYTES: Final = 64 * 1024
# Where every address of a name failed, asyncio's OSError has their errors in its text alone.
_JOINED: Final = r"^Multiple exceptions: \[Errno (\d+)\]"


class BoundedStream(httpcore2.NetworkStream):
    """A connection that asks the deadlines before it waits."""

    def __init__(self, inner: httpcore2.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: Any = None) -> bytes:
        """Return what has come."""
        return self._inner.read(max_bytes, self._seconds(timeout, httpcore2.ReadTimeout))

    def write(self, buffer: bytes, timeout: Any = None) -> None:
        """Send all, a part at a time."""
        for at in range(0, len(buffer), _WRITE_BYTES):
            seconds = self._seconds(timeout, httpcore2.WriteTimeout)
            self._inner.write(buffer[at : at + _WRITE_BYTES], seconds)

    def close(self) -> None:
        """Hang up; a thread that waits here then goes on."""
        self._hang_up()
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: Any = None,
    ) -> httpcore2.NetworkStream:
        """Return the same connection inside TLS."""
        seconds = self._seconds(timeout, httpcore2.ConnectTimeout)
        return BoundedStream(self._inner.start_tls(ssl_context, server_hostname, seconds))

    def get_extra_info(self, info: str) -> Any:
        """Return what the inner connection knows."""
        return self._inner.get_extra_info(info)

    def _seconds(self, deadlines: Deadlines, late: type[Exception]) -> float:
        deadlines.ends_by(self._hang_up)
        return seconds_left(deadlines, late)

    def _hang_up(self) -> None:
        # Not the method of ssl.SSLSocket: it takes the TLS object from under a thread that reads,
        # which may then meet a ValueError.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._inner.get_extra_info("socket"), socket.SHUT_RDWR)


class BoundedBackend(httpcore2.NetworkBackend):
    """Opens connections whose waits are bounded."""

    def __init__(self) -> None:
        self._inner = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: Any = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        """Return a connection to a port."""
        seconds = seconds_left(timeout, httpcore2.ConnectTimeout)
        return BoundedStream(
            self._inner.connect_tcp(host, port, seconds, local_address, socket_options)
        )


def seconds_left(deadlines: Deadlines, late: type[Exception]) -> float:
    """Return how long to wait now; the error of the library when the time is up."""
    # A limit of 0 s would mean "do not wait" to a socket.
    left_s = deadlines.remaining_s
    if left_s == 0.0:
        raise late("the time is up")
    return left_s


def tls_context(access: Access) -> ssl.SSLContext:
    """Return the TLS of a connection, with files that `Access.check` has looked at."""
    # Once for a transport: loading the system's authorities takes longer than a short request.
    context = (
        ssl.create_default_context(cafile=access.ca)
        if access.ca
        else httpcore2.default_ssl_context()
    )
    if access.certificate is not None:
        context.load_cert_chain(access.certificate, access.key)
    return context


def environment_proxy(endpoint: Endpoint) -> httpcore2.Proxy | None:
    """Return the proxy that the environment has for a server, by the rules of urllib."""
    if not endpoint.environment_proxy:
        return None
    # Takes longer to import than most requests take.
    from urllib.request import getproxies, proxy_bypass

    proxies = getproxies()
    url = proxies.get(endpoint.scheme) or proxies.get("all")
    if not url or proxy_bypass(endpoint.address):
        return None
    return httpcore2.Proxy(url if "://" in url else f"http://{url}")


def pool_settings(endpoint: Endpoint, tls: ssl.SSLContext | None) -> dict[str, Any]:
    """Return how a pool of connections to a server is set up, but for its network backend."""
    return {
        "ssl_context": tls,
        "proxy": environment_proxy(endpoint),
        # A stream holds its connection to its end: beyond httpcore's 10 the next ones would wait.
        "max_connections": None,
        "max_keepalive_connections": None,
        "keepalive_expiry": _KEEPALIVE_S,
        "socket_options": SOCKET_OPTIONS,
    }


def system_reason(error: BaseException) -> str:
    """Return what the operating system said, under the wrappings of three libraries."""
    inner: BaseException | None = error
    while inner is not None:
        # asyncio puts words of its own in place of the system's, and joins those of several tries.
        if isinstance(inner, ConnectionError) and inner.errno:
            return os.strerror(inner.errno)
        if isinstance(inner, OSError) and (number := re.search(_JOINED, str(inner))):
            return os.strerror(int(number[1]))
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        inner = inner.__cause__ or inner.__context__
    return str(error) or type(error).__name__
