"""The client for asyncio: `client` with async and await."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from types import TracebackType

from minitron_trt.clients.completions import Completion, check_single, collect
from minitron_trt.clients.endpoint import Access, Endpoint, Timeouts
from minitron_trt.clients.messages import Chunk, GenerateRequest
from minitron_trt.clients.transport import AsyncTransport


class AsyncTextStream(AsyncIterator[str]):
    """The text of one answer, piece by piece; leaving its `with` block early cancels it."""

    def __init__(self, chunks: AsyncGenerator[Chunk, None]) -> None:
        self._chunks = chunks

    async def __anext__(self) -> str:
        async for chunk in self._chunks:
            if chunk.text:
                return chunk.text
        raise StopAsyncIteration

    async def close(self) -> None:
        """Cancel the request unless the answer is complete."""
        await self._chunks.aclose()

    async def __aenter__(self) -> AsyncTextStream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


class AsyncClient:
    """Talk to a Triton server from one event loop; good for any number of requests at a time."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        timeout_s: float = Timeouts().request_s,
        connect_timeout_s: float = Timeouts().connect_s,
        environment_proxy: bool | None = None,
        access: Access | None = None,
    ) -> AsyncClient:
        """Return a client for a grpc://, grpcs://, http:// or https:// URL.

        Nothing is sent before the first use. The environment's proxies are used for other machines
        only, unless `environment_proxy` says otherwise. UsageError when the URL is not one.
        """
        endpoint = Endpoint.parse(url, environment_proxy=environment_proxy)
        access = access or Access()
        access.check(endpoint)
        return cls(_transport(endpoint, Timeouts(timeout_s, connect_timeout_s), access))

    async def generate(self, request: GenerateRequest) -> str:
        """Return the whole text of an answer."""
        async with self.stream(request) as texts:
            return "".join([text async for text in texts])

    def stream(self, request: GenerateRequest) -> AsyncTextStream:
        """Return the text of an answer as it is made; the request is sent when iteration starts.

        UsageError when the request asks for several sequences.
        """
        check_single(request)
        return AsyncTextStream(self._transport.stream(request))

    def chunks(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        """Yield an answer's chunks, of several sequences too; closing the generator cancels."""
        return self._transport.stream(request)

    async def completions(self, request: GenerateRequest) -> Sequence[Completion]:
        """Return every sequence of an answer, with the other outputs that were asked for."""
        async with contextlib.aclosing(self.chunks(request)) as chunks:
            return collect([chunk async for chunk in chunks])

    async def ready(self) -> bool:
        """Say whether the server can take requests; UnreachableError when there is none."""
        return await self._transport.ready()

    async def close(self) -> None:
        """Close the connection; requests under way are cancelled."""
        await self._transport.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


def _transport(endpoint: Endpoint, timeouts: Timeouts, access: Access) -> AsyncTransport:
    # Each of the two libraries is loaded only by those who use it.
    if endpoint.is_grpc:
        from minitron_trt.clients.transport_grpc import AsyncGrpcTransport

        return AsyncGrpcTransport(endpoint, timeouts, access)
    from minitron_trt.clients.transport_http import AsyncHttpTransport

    return AsyncHttpTransport(endpoint, timeouts, access)
