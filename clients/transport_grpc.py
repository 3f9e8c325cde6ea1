"""Requests over gRPC: one channel per transport, one ModelStreamInfer call per request.

The stream call serves decoupled models and all others alike, so nobody has to know which is which.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator, Generator, Iterator
from typing import Any, Final

from minitron_trt.clients.endpoint import Access, Deadline, Endpoint, Timeouts
from minitron_trt.clients.faults import GRPC_FAULTS, BrokenProtocolError, Fault, server_error
from minitron_trt.clients.grpc_api import GRPCInferenceServiceStub, aio, grpc, service_pb2
from minitron_trt.clients.messages import Chunk, GenerateRequest
from minitron_trt.clients.protocol import AnswerStream
from minitron_trt.clients.protocol_grpc import decode, encode
from minitron_trt.errors import UnreachableError

# Triton takes more than two pings within 300 s without data for an attack and hangs up.
_KEEPALIVE_MS: Final = 310_000
_KEEPALIVE_TIMEOUT_MS: Final = 20_000
_RECONNECT_MS: Final = 500
# "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:8001: " says nothing new.
_ROUTE: Final = re.compile(r"^.*last error: (?:[A-Z_]+: )?(?:ipv[46]:\S+: )?")


def channel_options(endpoint: Endpoint) -> list[tuple[str, int]]:
    """Return the settings of a channel."""
    return [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.enable_http_proxy", int(endpoint.environment_proxy)),
        # Connections are otherwise shared by the process: a failure that one client met would
        # answer for the next, and closing would close nothing.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", _RECONNECT_MS),
        ("grpc.max_reconnect_backoff_ms", _RECONNECT_MS),
    ]


class _GrpcParts:
    """What both transports do without waiting for anything."""

    def __init__(self, endpoint: Endpoint, timeouts: Timeouts, access: Access) -> None:
        self._endpoint = endpoint
        self._timeouts = timeouts
        self._access = access
        self._metadata = [(name.lower(), value) for name, value in access.headers.items()]
        self._options = channel_options(endpoint)
        self._has_answered = False

    @contextlib.contextmanager
    def _faults(self, *, probing: bool = False) -> Iterator[None]:
        """Turn the library's errors into ours."""
        try:
            yield
        except grpc.RpcError as error:
            fault = GRPC_FAULTS[error.code().name][0 if probing else 1]
            raise self._error(fault, error.details() or error.code().name) from error
        except BrokenProtocolError as error:
            raise self._error(error.fault, str(error)) from error

    def _error(self, fault: Fault, detail: str) -> Exception:
        if fault is not Fault.REFUSED:
            detail = _ROUTE.sub("", detail)
        error = server_error(fault, detail, self._endpoint, self._timeouts)
        if isinstance(error, UnreachableError):
            self._has_answered = False
        return error


class GrpcTransport(_GrpcParts):
    """Carry requests to Triton's gRPC service."""

    def __init__(self, endpoint: Endpoint, timeouts: Timeouts, access: Access) -> None:
        super().__init__(endpoint, timeouts, access)
        self._channel = _open(grpc, endpoint, access, self._options)
        self._stub = GRPCInferenceServiceStub(self._channel)

    def stream(self, request: GenerateRequest) -> Generator[Chunk, None, None]:
        """Yield the answer's chunks as they come; closing the generator cancels the request."""
        deadline = Deadline(self._timeouts.request_s)
        self._probe()
        answer = AnswerStream(marks_final=True)
        with self._faults():
            messages = iter((encode(request),))
            call = self._stub.ModelStreamInfer(
                messages, timeout=deadline.remaining_s, metadata=self._metadata
            )
            try:
                for response in call:
                    yield from answer.feed(decode(response))
                yield from answer.end()
            finally:
                call.cancel()

    def ready(self) -> bool:
        """Say whether the server and its models can take requests."""
        with self._faults(probing=True):
            message = service_pb2.ServerReadyRequest()
            return bool(
                self._stub.ServerReady(
                    message, timeout=self._timeouts.probe_s, metadata=self._metadata
                ).ready
            )

    def close(self) -> None:
        """Close the channel; requests under way are cancelled."""
        self._channel.close()

    def _probe(self) -> None:
        """Look for a server once, so that a wrong address fails early instead of at the end."""
        if self._has_answered:
            return
        with self._faults(probing=True):
            message = service_pb2.ServerLiveRequest()
            self._stub.ServerLive(message, timeout=self._timeouts.probe_s, metadata=self._metadata)
        self._has_answered = True


class AsyncGrpcTransport(_GrpcParts):
    """Carry requests to Triton's gRPC service, in asyncio."""

    _channel: Any = None
    _stub: Any = None

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        """Yield the answer's chunks as they come; closing the generator cancels the request."""
        deadline = Deadline(self._timeouts.request_s)
        await self._probe()
        answer = AnswerStream(marks_final=True)
        with self._faults():
            messages = iter((encode(request),))
            call = self._stub.ModelStreamInfer(
                messages, timeout=deadline.remaining_s, metadata=self._metadata
            )
            try:
                async for response in call:
                    for chunk in answer.feed(decode(response)):
                        yield chunk
                for chunk in answer.end():
                    yield chunk
            finally:
                call.cancel()

    async def ready(self) -> bool:
        """Say whether the server and its models can take requests."""
        self._open_channel()
        with self._faults(probing=True):
            message = service_pb2.ServerReadyRequest()
            answer = await self._stub.ServerReady(
                message, timeout=self._timeouts.probe_s, metadata=self._metadata
            )
            return bool(answer.ready)

    async def close(self) -> None:
        """Close the channel; requests under way are cancelled."""
        if self._channel is not None:
            await self._channel.close()

    async def _probe(self) -> None:
        """Look for a server once, so that a wrong address fails early instead of at the end."""
        self._open_channel()
        if self._has_answered:
            return
        with self._faults(probing=True):
            message = service_pb2.ServerLiveRequest()
            await self._stub.ServerLive(
                message, timeout=self._timeouts.probe_s, metadata=self._metadata
            )
        self._has_answered = True

    def _open_channel(self) -> None:
        # A channel belongs to the event loop that runs when it is made: not before the first use.
        if self._channel is None:
            self._channel = _open(aio, self._endpoint, self._access, self._options)
            self._stub = GRPCInferenceServiceStub(self._channel)


def _open(library: Any, endpoint: Endpoint, access: Access, options: list[tuple[str, int]]) -> Any:
    if endpoint.is_encrypted:
        ca, key, certificate = (
            path and path.read_bytes() for path in (access.ca, access.key, access.certificate)
        )
        credentials = grpc.ssl_channel_credentials(ca, key, certificate)
        return library.secure_channel(endpoint.address, credentials, options)
    return library.insecure_channel(endpoint.address, options)
