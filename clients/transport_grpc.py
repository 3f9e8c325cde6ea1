"""Requests over gRPC: one channel per transport, one ModelStreamInfer call per request.

The stream call serves decoupled models and all others alike. Services that have KServe's own calls
only get ModelInfer.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from minitron_trt.clients.deadlines import Deadlines
from minitron_trt.clients.endpoint import Access, Endpoint, SizeLimits
from minitron_trt.clients.event_loops import PerLoop
from minitron_trt.clients.faults import GRPC_FAULTS, BrokenProtocolError, Fault, server_error
from minitron_trt.clients.grpc_api import aio, grpc, open_stub, service_pb2
from minitron_trt.clients.messages import Chunk, GenerateRequest
from minitron_trt.clients.model_interface import InferCall, ModelInterface
from minitron_trt.clients.protocol import AnswerStream, Piece
from minitron_trt.clients.protocol_grpc import ask_interface, decode, decode_response, encode
from minitron_trt.errors import ServerError, UnreachableError

# Triton takes more than two pings within 300 s without data for an attack and hangs up.
_KEEPALIVE_MS: Final = 310_000
_KEEPALIVE_TIMEOUT_MS: Final = 20_000
# Sooner than the first retry of a request, which would otherwise only hear the last failure again.
_FIRST_RECONNECT_MS: Final = 100
_RECONNECT_MS: Final = 500
# "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:8001: " says nothing new.
# These patterns are for what went wrong, and compiled when that happens.
_ROUTE: Final = (
    r"^.*last error: (?:[A-Z_]+: )?(?:ipv[46]:\S+: )?(?:Failed to connect to remote host: )?"
)
_PASSING: Final = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")
_TOO_LARGE: Final = "Received message larger than max|decompressed message is larger"

# Of a connection that carries something else; the library calls it an internal error.
_BROKEN: Final = "(?i)HTTP/?2|RST_STREAM|GOAWAY|Stream removed"


def channel_options(endpoint: Endpoint, limits: SizeLimits) -> list[tuple[str, int | str]]:
    """Return the settings of a channel."""
    return [
        # A name with several addresses, as of a headless Service, is asked at all of them in turn.
        ("grpc.lb_policy_name", "round_robin"),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.enable_http_proxy", int(endpoint.environment_proxy)),
        # Connections are otherwise shared by the process: a failure that one client met would
        # answer for the next, and closing would close nothing.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", _FIRST_RECONNECT_MS),
        ("grpc.max_reconnect_backoff_ms", _RECONNECT_MS),
    ]


class _GrpcParts:
    """What both transports do without waiting for anything."""

    def __init__(self, endpoint: Endpoint, access: Access, limits: SizeLimits) -> None:
        self._endpoint = endpoint
        self._access = access
        self._limits = limits
        self._interfaces: dict[str, ModelInterface] = {}
        self._is_closed = False

    @contextlib.contextmanager
    def _faults(self, deadlines: Deadlines, *, probing: bool = False) -> Iterator[None]:
        """Turn the library's errors into ours."""
        try:
            yield
        except grpc.RpcError as error:
            code, detail = error.code().name, error.details() or error.code().name
            fault = GRPC_FAULTS[code][0 if probing else 1]
            # So ends what was cancelled or timed here, too; the deadlines know whether it was.
            if code in ("CANCELLED", "DEADLINE_EXCEEDED"):
                fault = deadlines.fault or fault
            if re.search(_TOO_LARGE, detail):
                fault = Fault.TOO_LARGE
            elif code in ("INTERNAL", "UNKNOWN") and re.search(_BROKEN, detail):
                fault = Fault.ABSENT if probing else Fault.LOST
            raised = self._error(fault, detail, deadlines)
            raised.is_passing |= code in _PASSING and fault is not Fault.TOO_LARGE
            raise raised from error
        except TimeoutError as error:
            raise self._error(deadlines.fault or Fault.SLOW, "", deadlines) from error
        except BrokenProtocolError as error:
            raised = self._error(error.fault, str(error), deadlines)
            raised.is_passing = error.fault is Fault.LOST
            raise raised from error
        except (ValueError, aio.UsageError, asyncio.CancelledError) as error:
            # What a channel says that somebody else has closed.
            if not self._is_closed or _is_cancelled(error):
                raise
            raise self._error(Fault.CANCELLED, "", deadlines) from error

    def _error(self, fault: Fault, detail: str, deadlines: Deadlines) -> ServerError:
        if fault is not Fault.REFUSED:
            detail = re.sub(_ROUTE, "", detail)
        error = server_error(fault, detail, self._endpoint, deadlines.timeouts)
        if isinstance(error, UnreachableError):
            # Who answers there next time may have other models.
            self._interfaces.clear()
        return error

    def _metadata(self, request: GenerateRequest | None = None) -> list[tuple[str, str]]:
        headers = {**self._access.headers, **(request.headers if request else {})}
        # gRPC refuses a name with a capital letter.
        return [(name.lower(), value) for name, value in headers.items()]

    def _answer(self, call: InferCall) -> AnswerStream:
        return AnswerStream(sequences=call.request.sequences, limit_bytes=self._limits.answer_bytes)

    def _options(self) -> list[tuple[str, int | str]]:
        return channel_options(self._endpoint, self._limits)


class GrpcTransport(_GrpcParts):
    """Carry requests to Triton's gRPC service."""

    def __init__(self, endpoint: Endpoint, access: Access, limits: SizeLimits) -> None:
        super().__init__(endpoint, access, limits)
        self._channel = _open(grpc, endpoint, access, self._options())
        self._stub = open_stub(self._channel)

    def stream(
        self, request: GenerateRequest, deadlines: Deadlines
    ) -> Generator[Chunk, None, None]:
        """Yield the answer's chunks as they come; closing the generator cancels the request."""
        interface = self.interface(request, deadlines)
        call = interface.call(request)
        answer = self._answer(call)
        with self._faults(deadlines):
            deadlines.asked()
            rpc, read = self._begin(call, deadlines)
            deadlines.ends_by(rpc.cancel)
            with _watch(rpc, deadlines):
                try:
                    for response in rpc if read is decode else iter((rpc.result(),)):
                        deadlines.answered()
                        yield from answer.feed(read(response))
                        deadlines.waiting()
                    yield from answer.end()
                finally:
                    # Frees the request's place in Triton; of a call that has ended it does nothing.
                    rpc.cancel()

    def ready(self, deadlines: Deadlines) -> bool:
        """Say whether the server and its models can take requests."""
        deadlines.connecting()
        with self._faults(deadlines, probing=True):
            reply = self._stub.ServerReady(
                service_pb2.ServerReadyRequest(),
                timeout=deadlines.remaining_s,
                metadata=self._metadata(),
            )
            return bool(reply.ready)

    def close(self) -> None:
        """Close the channel; requests under way are cancelled."""
        self._is_closed = True
        self._channel.close()

    def _begin(self, call: InferCall, deadlines: Deadlines) -> tuple[Any, Callable[[Any], Piece]]:
        """Send a request; return the call under way and what reads its responses."""
        message, metadata = encode(call), self._metadata(call.request)
        if call.is_plain:
            infer = self._stub.ModelInfer.future
            return infer(message, timeout=deadlines.total_s, metadata=metadata), decode_response
        stream = self._stub.ModelStreamInfer
        return stream(message, timeout=deadlines.total_s, metadata=metadata), decode

    def interface(self, request: GenerateRequest, deadlines: Deadlines) -> ModelInterface:
        """Ask once what a model takes, which finds a wrong address early, too."""
        known = self._interfaces.get(request.model)
        if known is not None:
            return known
        deadlines.connecting()
        metadata = self._metadata(request)
        question, reply = ask_interface(request.model), None
        with self._faults(deadlines, probing=True):
            while True:
                try:
                    method, message = question.send(reply)
                except StopIteration as end:
                    return self._interfaces.setdefault(request.model, end.value)
                try:
                    reply = getattr(self._stub, method)(
                        message, timeout=deadlines.remaining_s, metadata=metadata
                    )
                except grpc.RpcError as error:
                    reply = error


@dataclass(frozen=True, slots=True)
class _Connection:
    """A channel and what calls through it."""

    channel: Any
    stub: Any
    calls: weakref.WeakSet[Any] = field(default_factory=weakref.WeakSet)

    async def close(self) -> None:
        """Cancel what is under way; not every version of the library does it as it closes."""
        for rpc in tuple(self.calls):
            rpc.cancel()
        await self.channel.close()


class AsyncGrpcTransport(_GrpcParts):
    """Carry requests to Triton's gRPC service, in asyncio."""

    def __init__(self, endpoint: Endpoint, access: Access, limits: SizeLimits) -> None:
        super().__init__(endpoint, access, limits)
        self._connections = PerLoop(self._connect, _Connection.close)

    async def stream(
        self, request: GenerateRequest, deadlines: Deadlines
    ) -> AsyncGenerator[Chunk, None]:
        """Yield the answer's chunks as they come; closing the generator cancels the request."""
        interface = await self.interface(request, deadlines)
        call = interface.call(request)
        answer = self._answer(call)
        with self._faults(deadlines):
            deadlines.asked()
            rpc, read = await self._begin(call, deadlines)
            try:
                async for response in _responses(rpc, deadlines, is_plain=call.is_plain):
                    deadlines.answered()
                    for chunk in answer.feed(read(response)):
                        yield chunk
                    deadlines.waiting()
                for chunk in answer.end():
                    yield chunk
            finally:
                rpc.cancel()

    async def ready(self, deadlines: Deadlines) -> bool:
        """Say whether the server and its models can take requests."""
        deadlines.connecting()
        with self._faults(deadlines, probing=True):
            stub = await self._stub()
            reply = await stub.ServerReady(
                service_pb2.ServerReadyRequest(),
                timeout=deadlines.remaining_s,
                metadata=self._metadata(),
            )
            return bool(reply.ready)

    async def close(self) -> None:
        """Close the channels; requests under way are cancelled."""
        self._is_closed = True
        await self._connections.close()

    async def _begin(
        self, call: InferCall, deadlines: Deadlines
    ) -> tuple[Any, Callable[[Any], Piece]]:
        """Send a request; return the call under way and what reads its responses."""
        message, metadata = encode(call), self._metadata(call.request)
        connection = await self._connections.get()
        method, read = (
            (connection.stub.ModelInfer, decode_response)
            if call.is_plain
            else (connection.stub.ModelStreamInfer, decode)
        )
        rpc = method(message, timeout=deadlines.total_s, metadata=metadata)
        connection.calls.add(rpc)
        return rpc, read

    async def interface(self, request: GenerateRequest, deadlines: Deadlines) -> ModelInterface:
        """Ask once what a model takes, which finds a wrong address early, too."""
        known = self._interfaces.get(request.model)
        if known is not None:
            return known
        deadlines.connecting()
        metadata, stub = self._metadata(request), await self._stub()
        question, reply = ask_interface(request.model), None
        with self._faults(deadlines, probing=True):
            while True:
                try:
                    method, message = question.send(reply)
                except StopIteration as end:
                    return self._interfaces.setdefault(request.model, end.value)
                try:
                    reply = await getattr(stub, method)(
                        message, timeout=deadlines.remaining_s, metadata=metadata
                    )
                except grpc.RpcError as error:
                    reply = error

    def _connect(self) -> _Connection:
        channel = _open(aio, self._endpoint, self._access, self._options())
        return _Connection(channel, open_stub(channel))

    async def _stub(self) -> Any:
        return (await self._connections.get()).stub


def _is_cancelled(error: BaseException) -> bool:
    """Say whether an error is the end of the task that got it, and not of its call."""
    task = asyncio.current_task() if isinstance(error, asyncio.CancelledError) else None
    return task is not None and task.cancelling() > 0


@contextlib.contextmanager
def _watch(rpc: Any, deadlines: Deadlines) -> Iterator[None]:
    """End a call whose next token is late: the library bounds only the whole of a stream."""
    if not deadlines.has_token_limits:
        yield
        return
    done = threading.Event()

    def watch() -> None:
        """Look at the deadlines whenever one of them could have passed."""
        while not done.wait(deadlines.check_s):
            if deadlines.passed:
                rpc.cancel()
                return

    threading.Thread(target=watch, daemon=True, name="minitron-trt deadlines").start()
    try:
        yield
    finally:
        done.set()


async def _responses(rpc: Any, deadlines: Deadlines, *, is_plain: bool) -> AsyncIterator[Any]:
    """Yield a call's responses; TimeoutError when the next token is late."""
    # With nothing to bound, no token needs a scope of asyncio.timeout: the call has its own limit.
    if not deadlines.has_token_limits and not is_plain:
        async for response in rpc:
            yield response
        return
    while True:
        async with asyncio.timeout(deadlines.remaining_s):
            response = await (rpc if is_plain else rpc.read())
        if response is aio.EOF:
            return
        yield response
        if is_plain:
            return


def _open(
    library: Any, endpoint: Endpoint, access: Access, options: list[tuple[str, int | str]]
) -> Any:
    if endpoint.is_encrypted:
        ca, key, certificate = (
            path and path.read_bytes() for path in (access.ca, access.key, access.certificate)
        )
        credentials = grpc.ssl_channel_credentials(ca, key, certificate)
        return library.secure_channel(endpoint.address, credentials, options)
    return library.insecure_channel(endpoint.address, options)
