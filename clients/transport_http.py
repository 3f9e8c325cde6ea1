"""Requests over HTTP: one POST per request, its answer as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

import httpx2

from minitron_trt.clients.endpoint import Access, Deadline, Endpoint, Timeouts
from minitron_trt.clients.faults import HTTP_FAULTS, BrokenProtocolError, Fault, server_error
from minitron_trt.clients.messages import Chunk, GenerateRequest
from minitron_trt.clients.protocol import AnswerStream, decode_event, http_body, http_path
from minitron_trt.errors import ServerError, UnreachableError, UsageError

_HEALTH: Final[Mapping[int, bool]] = MappingProxyType({200: True, 400: False, 503: False})
"""What Triton's health paths answer; anything else is another server."""


class _HttpParts:
    """What both transports do without waiting for anything."""

    def __init__(self, endpoint: Endpoint, timeouts: Timeouts, access: Access) -> None:
        self._endpoint = endpoint
        self._access = access
        self._timeouts = timeouts
        self._has_answered = False

    def _client_settings(self) -> dict[str, Any]:
        return {
            "base_url": str(self._endpoint),
            "trust_env": self._endpoint.environment_proxy,
            "headers": dict(self._access.headers),
            # Loading the certificate store takes longer than a short request.
            "verify": self._tls() if self._endpoint.is_encrypted else False,
        }

    def _tls(self) -> ssl.SSLContext | bool:
        ca, certificate = self._access.ca, self._access.certificate
        if ca is None and certificate is None:
            return True
        try:
            context = ssl.create_default_context(cafile=ca)
            if certificate is not None:
                context.load_cert_chain(certificate, self._access.key)
        except ssl.SSLError as error:
            raise UsageError(f"{ca or certificate} is not a certificate in PEM form") from error
        return context

    def _limits(self, deadline: Deadline) -> httpx2.Timeout:
        # A limit of 0 s would mean "do not wait" to a socket.
        left = max(deadline.remaining_s, 0.001)
        return httpx2.Timeout(left, connect=min(left, self._timeouts.connect_s))

    def _health(self, response: httpx2.Response) -> bool:
        if response.status_code not in _HEALTH:
            raise BrokenProtocolError(
                Fault.ABSENT, f"{response.url.path} says {_describe(response)}"
            )
        return _HEALTH[response.status_code]

    @contextlib.contextmanager
    def _faults(self, deadline: Deadline, *, probing: bool = False) -> Iterator[None]:
        """Turn the library's errors into ours."""
        try:
            yield
        except httpx2.RequestError as error:
            known = (kind.__name__ for kind in type(error).__mro__ if kind.__name__ in HTTP_FAULTS)
            fault = HTTP_FAULTS[next(known, "ReadError")][0 if probing else 1]
            # Cutting the connection is how a request in mid-answer is made to end on time.
            if deadline.passed:
                fault = Fault.SILENT if probing else Fault.SLOW
            raise self._error(fault, _reason(error)) from error
        except BrokenProtocolError as error:
            raise self._error(error.fault, str(error)) from error

    def _error(self, fault: Fault, detail: str) -> ServerError:
        error = server_error(fault, detail, self._endpoint, self._timeouts)
        if isinstance(error, UnreachableError):
            self._has_answered = False
        return error


class HttpTransport(_HttpParts):
    """Carry requests to Triton's HTTP service."""

    def __init__(self, endpoint: Endpoint, timeouts: Timeouts, access: Access) -> None:
        super().__init__(endpoint, timeouts, access)
        self._client = httpx2.Client(**self._client_settings())

    def stream(self, request: GenerateRequest) -> Generator[Chunk, None, None]:
        """Yield the answer's chunks as they come; closing the generator hangs up."""
        deadline = Deadline(self._timeouts.request_s)
        self._probe()
        answer = AnswerStream(marks_final=False)
        path, body, limits = http_path(request), http_body(request), self._limits(deadline)
        with (
            self._faults(deadline),
            self._client.stream("POST", path, json=body, timeout=limits) as response,
            _cut_at(deadline, response),
        ):
            for data in _events(response):
                yield from answer.feed(decode_event(data))
            _check_in_time(deadline)
            yield from answer.end()

    def ready(self) -> bool:
        """Say whether the server and its models can take requests."""
        return self._ask("ready")

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _probe(self) -> None:
        """Look for a server once, so that a wrong address fails early instead of at the end."""
        if not self._has_answered:
            self._ask("live")
            self._has_answered = True

    def _ask(self, state: str) -> bool:
        deadline = Deadline(self._timeouts.probe_s)
        with self._faults(deadline, probing=True):
            limits = self._limits(deadline)
            return self._health(self._client.get(f"/v2/health/{state}", timeout=limits))


class AsyncHttpTransport(_HttpParts):
    """Carry requests to Triton's HTTP service, in asyncio."""

    def __init__(self, endpoint: Endpoint, timeouts: Timeouts, access: Access) -> None:
        super().__init__(endpoint, timeouts, access)
        self._client = httpx2.AsyncClient(**self._client_settings())

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        """Yield the answer's chunks as they come; closing the generator hangs up."""
        deadline = Deadline(self._timeouts.request_s)
        await self._probe()
        answer = AnswerStream(marks_final=False)
        path, body, limits = http_path(request), http_body(request), self._limits(deadline)
        with self._faults(deadline):
            async with self._client.stream("POST", path, json=body, timeout=limits) as response:
                with _cut_later(deadline, response):
                    async for data in _events_async(response):
                        for chunk in answer.feed(decode_event(data)):
                            yield chunk
            _check_in_time(deadline)
            for chunk in answer.end():
                yield chunk

    async def ready(self) -> bool:
        """Say whether the server and its models can take requests."""
        return await self._ask("ready")

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _probe(self) -> None:
        """Look for a server once, so that a wrong address fails early instead of at the end."""
        if not self._has_answered:
            await self._ask("live")
            self._has_answered = True

    async def _ask(self, state: str) -> bool:
        deadline = Deadline(self._timeouts.probe_s)
        with self._faults(deadline, probing=True):
            limits = self._limits(deadline)
            return self._health(await self._client.get(f"/v2/health/{state}", timeout=limits))


def _events(response: httpx2.Response) -> Iterator[str]:
    if _is_event_stream(response):
        for event in httpx2.EventSource(response, max_event_size=None):
            if event.data:
                yield event.data
    else:
        response.read()
        yield _plain(response)


async def _events_async(response: httpx2.Response) -> AsyncIterator[str]:
    if _is_event_stream(response):
        async for event in httpx2.EventSource(response, max_event_size=None):
            if event.data:
                yield event.data
    else:
        await response.aread()
        yield _plain(response)


def _is_event_stream(response: httpx2.Response) -> bool:
    return str(response.headers.get("content-type", "")).startswith("text/event-stream")


def _plain(response: httpx2.Response) -> str:
    """Return a body that may be Triton's; it labels some of its JSON as plain text."""
    text = response.text
    if not text.lstrip().startswith("{"):
        raise BrokenProtocolError(Fault.ABSENT, f"{response.url.path} says {_describe(response)}")
    return text


def _describe(response: httpx2.Response) -> str:
    kind = str(response.headers.get("content-type", "nothing")).partition(";")[0]
    return f"HTTP {response.status_code} with {kind}"


def _reason(error: BaseException) -> str:
    """Return what the operating system said, under the wrappings of three libraries."""
    inner: BaseException | None = error
    while inner is not None:
        # asyncio puts words of its own in place of the system's.
        if isinstance(inner, ConnectionError) and inner.errno:
            return os.strerror(inner.errno)
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        inner = inner.__cause__ or inner.__context__
    return str(error) or type(error).__name__


def _check_in_time(deadline: Deadline) -> None:
    # A body that only the end of the connection ends looks complete when the deadline cut it.
    if deadline.passed:
        raise BrokenProtocolError(Fault.SLOW, "cut at the deadline")


def _cut(response: httpx2.Response) -> None:
    with contextlib.suppress(OSError):
        connection = response.extensions["network_stream"].get_extra_info("socket")
        connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def _cut_at(deadline: Deadline, response: httpx2.Response) -> Iterator[None]:
    """End the connection at the deadline: the library's read limit starts anew with every read."""
    timer = threading.Timer(deadline.remaining_s, _cut, (response,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def _cut_later(deadline: Deadline, response: httpx2.Response) -> Iterator[None]:
    """Do the same as _cut_at on the event loop."""
    timer = asyncio.get_running_loop().call_later(deadline.remaining_s, _cut, response)
    try:
        yield
    finally:
        timer.cancel()
