"""Requests over HTTP: one POST per request, its answer as server-sent events."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, Generator, Iterator
from typing import Any, Final, TypeVar

import httpcore2

from minitron_trt.clients.deadlines import Deadlines
from minitron_trt.clients.endpoint import Access, Endpoint, SizeLimits
from minitron_trt.clients.event_loops import PerLoop
from minitron_trt.clients.faults import HTTP_FAULTS, BrokenProtocolError, Fault, server_error
from minitron_trt.clients.interface_http import HttpReply, Question, ask_interface, ask_ready
from minitron_trt.clients.messages import Chunk, GenerateRequest
from minitron_trt.clients.model_interface import InferCall, ModelInterface
from minitron_trt.clients.network import (
    LIBRARY_ERRORS,
    BoundedBackend,
    pool_settings,
    system_reason,
    tls_context,
)
from minitron_trt.clients.network_asyncio import AsyncBoundedBackend
from minitron_trt.clients.protocol import AnswerStream, EventReader, Piece
from minitron_trt.clients.protocol_http import decode_event, http_body, http_path
from minitron_trt.errors import RefusedError, ServerError, UnreachableError

T = TypeVar("T")
# Health, metadata and configuration of a model are some thousand bytes.
_REPLY_BYTES: Final = 2**20
# Of a proxy that does not reach the server behind it.
_GATEWAY: Final = (502, 504)
_NOT_ALLOWED: Final = 405
_CLOSED: Final = (401, 403, 407)


class _HttpParts:
    """What both transports do without waiting for anything."""

    def __init__(self, endpoint: Endpoint, access: Access, limits: SizeLimits) -> None:
        self._endpoint = endpoint
        self._access = access
        self._limits = limits
        self._interfaces: dict[str, ModelInterface] = {}
        self._is_closed = False
        self._tls = tls_context(access) if endpoint.is_encrypted else None

    def _url(self, path: str) -> httpcore2.URL:
        return httpcore2.URL(
            scheme=self._endpoint.scheme,
            host=self._endpoint.host,
            port=self._endpoint.port,
            target=self._endpoint.path + path,
        )

    def _headers(self, request: GenerateRequest | None = None) -> list[tuple[str, str]]:
        """Return the headers to send; an encoded answer could be a bomb, so none is wanted."""
        fixed = {
            "host": self._endpoint.address,
            "accept": "*/*",
            "accept-encoding": "identity",
            "user-agent": "minitron-trt",
        }
        if request is not None:
            fixed["content-type"] = "application/json"
        own = {**self._access.headers, **(request.headers if request else {})}
        return list({**fixed, **{name.lower(): value for name, value in own.items()}}.items())

    def _posted(self, call: InferCall, deadlines: Deadlines) -> dict[str, Any]:
        """Return a request as the library takes it."""
        return {
            "method": "POST",
            "url": self._url(http_path(call)),
            "headers": self._headers(call.request),
            "content": json.dumps(http_body(call), ensure_ascii=False).encode(),
            "extensions": _timeouts(deadlines),
        }

    def _got(self, path: str, deadlines: Deadlines) -> dict[str, Any]:
        """Return a GET as the library takes it."""
        return {
            "method": "GET",
            "url": self._url(path),
            "headers": self._headers(),
            "extensions": _timeouts(deadlines),
        }

    def _answer(self, call: InferCall) -> AnswerStream:
        return AnswerStream(sequences=call.request.sequences, limit_bytes=self._limits.answer_bytes)

    @contextlib.contextmanager
    def _faults(self, deadlines: Deadlines, *, probing: bool = False) -> Iterator[None]:
        """Turn the library's errors into ours."""
        try:
            yield
        except LIBRARY_ERRORS as error:
            known = (kind.__name__ for kind in type(error).__mro__ if kind.__name__ in HTTP_FAULTS)
            fault = HTTP_FAULTS[next(known, "ReadError")][0 if probing else 1]
            if self._is_closed:
                fault = Fault.CANCELLED
            # A limit that passed, or `cancel`, cuts the connection; the library sees that it broke.
            fault = deadlines.fault or fault
            raised = self._error(fault, system_reason(error), deadlines)
            raised.is_passing = fault in (Fault.ABSENT, Fault.LOST)
            raise raised from error
        except BrokenProtocolError as error:
            raise self._error(error.fault, str(error), deadlines) from error

    def _error(self, fault: Fault, detail: str, deadlines: Deadlines) -> ServerError:
        error = server_error(fault, detail, self._endpoint, deadlines.timeouts)
        if isinstance(error, UnreachableError):
            # Who answers there next time may have other models.
            self._interfaces.clear()
        return error


class HttpTransport(_HttpParts):
    """Carry requests to Triton's HTTP service."""

    def __init__(self, endpoint: Endpoint, access: Access, limits: SizeLimits) -> None:
        super().__init__(endpoint, access, limits)
        self._pool = httpcore2.ConnectionPool(
            **pool_settings(self._endpoint, self._tls), network_backend=BoundedBackend()
        )

    def stream(
        self, request: GenerateRequest, deadlines: Deadlines
    ) -> Generator[Chunk, None, None]:
        """Yield the answer's chunks as they come; closing the generator hangs up."""
        call = self.interface(request, deadlines).call(request)
        answer = self._answer(call)
        with self._faults(deadlines):
            deadlines.asked()
            with self._pool.stream(**self._posted(call, deadlines)) as response:
                body = _AnswerBody(response, answer, self._limits, deadlines)
                for data in response.iter_stream():
                    yield from body.feed(data)
                yield from body.end()
            yield from answer.end()

    def ready(self, deadlines: Deadlines) -> bool:
        """Say whether the server and its models can take requests."""
        return self._ask(ask_ready(), deadlines)

    def close(self) -> None:
        """Close the connections; requests under way are cancelled."""
        self._is_closed = True
        self._pool.close()

    def interface(self, request: GenerateRequest, deadlines: Deadlines) -> ModelInterface:
        """Ask once what a model takes, which finds a wrong address early, too."""
        known = self._interfaces.get(request.model)
        if known is None:
            known = self._ask(ask_interface(request.model), deadlines)
            self._interfaces[request.model] = known
        return known

    def _ask(self, question: Question[T], deadlines: Deadlines) -> T:
        deadlines.connecting()
        reply: HttpReply | None = None
        with self._faults(deadlines, probing=True):
            while True:
                try:
                    path = question.send(reply)
                except StopIteration as end:
                    answer: T = end.value
                    return answer
                with self._pool.stream(**self._got(path, deadlines)) as response:
                    body = _Body(_REPLY_BYTES)
                    for data in response.iter_stream():
                        body.add(data)
                reply = _reply(response, body.whole())


class AsyncHttpTransport(_HttpParts):
    """Carry requests to Triton's HTTP service, in asyncio."""

    def __init__(self, endpoint: Endpoint, access: Access, limits: SizeLimits) -> None:
        super().__init__(endpoint, access, limits)
        settings = pool_settings(self._endpoint, self._tls)
        self._pools = PerLoop(
            lambda: httpcore2.AsyncConnectionPool(
                **settings, network_backend=AsyncBoundedBackend()
            ),
            close=lambda pool: pool.aclose(),
        )

    async def stream(
        self, request: GenerateRequest, deadlines: Deadlines
    ) -> AsyncGenerator[Chunk, None]:
        """Yield the answer's chunks as they come; closing the generator hangs up."""
        call = (await self.interface(request, deadlines)).call(request)
        answer = self._answer(call)
        with self._faults(deadlines):
            deadlines.asked()
            pool = await self._pools.get()
            async with pool.stream(**self._posted(call, deadlines)) as response:
                body = _AnswerBody(response, answer, self._limits, deadlines)
                async for data in response.aiter_stream():
                    for chunk in body.feed(data):
                        yield chunk
                for chunk in body.end():
                    yield chunk
            for chunk in answer.end():
                yield chunk

    async def ready(self, deadlines: Deadlines) -> bool:
        """Say whether the server and its models can take requests."""
        return await self._ask(ask_ready(), deadlines)

    async def close(self) -> None:
        """Close the connections; requests under way are cancelled."""
        self._is_closed = True
        await self._pools.close()

    async def interface(self, request: GenerateRequest, deadlines: Deadlines) -> ModelInterface:
        """Ask once what a model takes, which finds a wrong address early, too."""
        known = self._interfaces.get(request.model)
        if known is None:
            known = await self._ask(ask_interface(request.model), deadlines)
            self._interfaces[request.model] = known
        return known

    async def _ask(self, question: Question[T], deadlines: Deadlines) -> T:
        deadlines.connecting()
        reply: HttpReply | None = None
        pool = await self._pools.get()
        with self._faults(deadlines, probing=True):
            while True:
                try:
                    path = question.send(reply)
                except StopIteration as end:
                    answer: T = end.value
                    return answer
                async with pool.stream(**self._got(path, deadlines)) as response:
                    body = _Body(_REPLY_BYTES)
                    async for data in response.aiter_stream():
                        body.add(data)
                reply = _reply(response, body.whole())


class _Body:
    """A body as it comes, up to a size."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._size = 0
        self._parts: list[bytes] = []

    def add(self, data: bytes) -> None:
        """Take a part."""
        self._size += len(data)
        if self._size > self._limit:
            raise BrokenProtocolError(f"more than {self._limit} bytes", Fault.TOO_LARGE)
        self._parts.append(data)

    def whole(self) -> bytes:
        """Return all of it."""
        return b"".join(self._parts)


class _AnswerBody:
    """The body of an answer: the chunks in it, whether it is events or one object."""

    def __init__(
        self,
        response: httpcore2.Response,
        answer: AnswerStream,
        limits: SizeLimits,
        deadlines: Deadlines,
    ) -> None:
        self._reply = _reply(response)
        encoding = _header(response, b"content-encoding") or "identity"
        if encoding != "identity":
            raise BrokenProtocolError(f"a body in {encoding}, which was not asked for")
        is_stream = self._reply.content_type.startswith("text/event-stream")
        self._events = EventReader(limits.message_bytes) if is_stream else None
        self._body = _Body(limits.message_bytes)
        self._answer = answer
        self._deadlines = deadlines

    def feed(self, data: bytes) -> Iterator[Chunk]:
        """Yield the chunks of the events that are whole now."""
        if self._events is None:
            self._body.add(data)
            return
        for event in self._events.feed(data):
            self._deadlines.answered()
            yield from self._answer.feed(self._decode(event))
            self._deadlines.waiting()

    def end(self) -> Iterator[Chunk]:
        """Yield the chunks of a body that is no stream; BrokenProtocolError if it is no answer."""
        if self._events is not None:
            return
        body = self._body.whole()
        # Triton labels some of its JSON as plain text.
        if body.lstrip().startswith(b"{"):
            yield from self._answer.feed(self._decode(body))
            return
        if self._reply.is_busy:
            # Proxies say it in a page of their own.
            raise self._reply.refusal(str(self._reply))
        if self._reply.status in _CLOSED:
            raise BrokenProtocolError(str(self._reply), Fault.REFUSED)
        fault = Fault.ABSENT if self._reply.status in _GATEWAY else Fault.GARBLED
        raise BrokenProtocolError(str(self._reply), fault)

    def _decode(self, record: bytes) -> Piece:
        """Read a record; a RefusedError of a busy server is passing."""
        if self._reply.status == _NOT_ALLOWED:
            # Triton's port of metrics.
            raise BrokenProtocolError(str(self._reply), Fault.ABSENT)
        try:
            return decode_event(record)
        except RefusedError as error:
            error.is_passing |= self._reply.is_busy
            raise


def _reply(response: httpcore2.Response, body: bytes = b"") -> HttpReply:
    return HttpReply(response.status, _header(response, b"content-type"), body)


def _header(response: httpcore2.Response, name: bytes) -> str:
    values = (value for key, value in response.headers if key.lower() == name)
    return next(values, b"").decode("latin-1").strip().lower()


def _timeouts(deadlines: Deadlines) -> dict[str, Any]:
    return {"timeout": {"connect": deadlines, "read": deadlines, "write": deadlines}}
