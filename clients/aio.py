"""The client for asyncio: `client` with async and await."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from types import TracebackType
from typing import TYPE_CHECKING, Any

from minitron_trt.clients.completions import Collector, Completion, check_single
from minitron_trt.clients.deadlines import Deadlines
from minitron_trt.clients.endpoint import Access, Endpoint, SizeLimits, Timeouts
from minitron_trt.clients.messages import (
    Chunk,
    GenerateRequest,
    Prompt,
    as_conversation,
    as_request,
)
from minitron_trt.clients.retries import Retries
from minitron_trt.clients.tracing import request_span
from minitron_trt.errors import ServerError, UsageError

if TYPE_CHECKING:
    from minitron_trt.clients.model_interface import ModelInterface
    from minitron_trt.clients.transport import AsyncTransport


class AsyncTextStream(AsyncIterator[Chunk]):
    """The pieces of one answer as they come; leaving its `with` block early cancels it."""

    def __init__(self, chunks: AsyncGenerator[Chunk, None], request: GenerateRequest) -> None:
        self.request = request
        self._chunks = chunks
        self._collector = Collector(request)

    async def __anext__(self) -> Chunk:
        self._collector.begin()
        async for chunk in self._chunks:
            self._collector.add(chunk)
            if chunk.says_something:
                return chunk
        raise StopAsyncIteration

    @property
    def completion(self) -> Completion:
        """Return the answer as far as it has come."""
        return self._collector.first()

    async def read(self) -> Completion:
        """Return the whole answer."""
        async for _ in self:
            pass
        return self.completion

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
    """Talk to a Triton server from asyncio; good for any number of requests at a time.

    Each event loop that uses it gets connections of its own.
    """

    def __init__(
        self, transport: AsyncTransport, *, timeouts: Timeouts | None = None, max_retries: int = 2
    ) -> None:
        self._transport = transport
        self._timeouts = timeouts or Timeouts()
        self._retries = Retries(max_retries)
        self._is_closed = False

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        timeout_s: float = Timeouts().total_s,
        connect_timeout_s: float = Timeouts().connect_s,
        timeouts: Timeouts | None = None,
        max_retries: int = 2,
        limits: SizeLimits | None = None,
        environment_proxy: bool | None = None,
        access: Access | None = None,
    ) -> AsyncClient:
        """Return a client for a grpc://, grpcs://, http:// or https:// URL.

        Nothing is sent before the first use. `timeouts` sets limits to parts of an answer, too, in
        place of the other two; `Retries` tells what is sent again. The environment's proxies are
        used for other machines only, unless `environment_proxy` says otherwise. UsageError when the
        URL is not one.
        """
        timeouts = timeouts or Timeouts(timeout_s, connect_timeout_s)
        endpoint = Endpoint.parse(url, environment_proxy=environment_proxy)
        access = access or Access()
        access.check(endpoint)
        transport = _transport(endpoint, access, limits or SizeLimits())
        return cls(transport, timeouts=timeouts, max_retries=max_retries)

    async def generate(self, prompt: Prompt = "", **options: Any) -> Completion:
        """Return a whole answer; `options` are fields of GenerateRequest.

        UsageError when the request asks for several sequences.
        """
        async with self.stream(prompt, **{"count_tokens": True, **options}) as pieces:
            return await pieces.read()

    async def chat(self, messages: str | Sequence[Mapping[str, str]], **options: Any) -> Completion:
        """Return the answer to a conversation, by the chat template of the model.

        Messages have a role and content each; a text is one message of the user.
        """
        return await self.generate(as_conversation(messages), **options)

    def stream(self, prompt: Prompt = "", **options: Any) -> AsyncTextStream:
        """Return the pieces of an answer as they come; the request is sent when iteration starts.

        UsageError when the request asks for several sequences.
        """
        request = as_request(prompt, options)
        check_single(request)
        return AsyncTextStream(self._chunks(request), request)

    def generate_many(
        self,
        prompts: Iterable[Prompt] | AsyncIterable[Prompt],
        *,
        concurrency: int = 8,
        ordered: bool = True,
        on_error: Callable[[GenerateRequest, ServerError], object] | None = None,
        **options: Any,
    ) -> AsyncGenerator[Completion, None]:
        """Yield the answers to many prompts, so many at a time, in their order or as they come.

        Prompts are taken as answers are, so they may be endless; a completion's `request` says
        which it was. The first ServerError ends it all, unless `on_error` takes them. Closing the
        generator cancels what runs.
        """
        if concurrency < 1:
            raise UsageError(f"concurrency is {concurrency}; expected 1 or more")
        options = {"count_tokens": True, **options}
        streams = (self.stream(prompt, **options) async for prompt in _each(prompts))
        return self._many(streams, concurrency, ordered, on_error)

    def chunks(self, prompt: Prompt = "", **options: Any) -> AsyncGenerator[Chunk, None]:
        """Yield an answer's chunks, of several sequences too; closing the generator cancels."""
        return self._chunks(as_request(prompt, options))

    async def completions(self, prompt: Prompt = "", **options: Any) -> Sequence[Completion]:
        """Return every sequence of an answer."""
        request = as_request(prompt, {"count_tokens": True, **options})
        collector = Collector(request)
        collector.begin()
        async with contextlib.aclosing(self.chunks(request)) as chunks:
            async for chunk in chunks:
                collector.add(chunk)
        return collector.completions()

    async def interface(self, model: str) -> ModelInterface:
        """Return what a model takes and gives; RefusedError when the server does not know it."""
        deadlines = Deadlines(self._timeouts)
        deadlines.begin()
        return await self._transport.interface(GenerateRequest(model=model), deadlines)

    async def ready(self) -> bool:
        """Say whether the server can take requests; UnreachableError when there is none."""
        deadlines = Deadlines(self._timeouts)
        deadlines.begin()
        return await self._transport.ready(deadlines)

    async def close(self) -> None:
        """Close the connection; requests under way are cancelled."""
        self._is_closed = True
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

    async def _chunks(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        """Yield an answer's chunks, and close its stream whatever ends it."""
        if self._is_closed:
            raise UsageError("the client is closed; make another one with connect()")
        deadlines = Deadlines(self._timeouts)
        deadlines.begin()
        with request_span(request) as span:
            stream, chunk = await self._begin(span.request, deadlines)
            async with contextlib.aclosing(stream):
                while chunk is not None:
                    span.note(chunk)
                    yield chunk
                    chunk = await anext(stream, None)

    async def _begin(
        self, request: GenerateRequest, deadlines: Deadlines
    ) -> tuple[AsyncGenerator[Chunk, None], Chunk | None]:
        """Return a stream with its first chunk; before that, try again what may pass."""
        retries = 0
        while True:
            stream = self._transport.stream(request, deadlines)
            try:
                return stream, await anext(stream, None)
            except ServerError as error:
                delay_s = self._retries.delay_s(error, retries, deadlines)
                if delay_s is None:
                    raise
            await asyncio.sleep(delay_s)
            retries += 1

    async def _many(
        self,
        streams: AsyncIterator[AsyncTextStream],
        concurrency: int,
        ordered: bool,
        on_error: Callable[[GenerateRequest, ServerError], object] | None,
    ) -> AsyncGenerator[Completion, None]:
        running: deque[tuple[asyncio.Task[Completion], AsyncTextStream]] = deque()
        # Every stream of the window has a task at once; so many of those ask at a time.
        places = asyncio.Semaphore(concurrency)
        # Answers that wait for an earlier one hold nobody up, up to as many again.
        window = concurrency * 2 if ordered else concurrency
        try:
            while True:
                while len(running) < window and (stream := await anext(streams, None)) is not None:
                    running.append((asyncio.create_task(_read(stream, places)), stream))
                if not running:
                    return
                if not ordered:
                    tasks = [task for task, _ in running]
                    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                    while running[0][0] not in done:
                        running.rotate(-1)
                task, stream = running.popleft()
                try:
                    completion = await task
                except ServerError as error:
                    if on_error is None:
                        raise
                    on_error(stream.request, error)
                else:
                    yield completion
        finally:
            for task, _ in running:
                task.cancel()
            await asyncio.gather(*(task for task, _ in running), return_exceptions=True)


async def _read(stream: AsyncTextStream, places: asyncio.Semaphore) -> Completion:
    async with places, stream:
        return await stream.read()


async def _each(prompts: Iterable[Prompt] | AsyncIterable[Prompt]) -> AsyncIterator[Prompt]:
    if isinstance(prompts, AsyncIterable):
        async for prompt in prompts:
            yield prompt
    else:
        for prompt in prompts:
            yield prompt


def _transport(endpoint: Endpoint, access: Access, limits: SizeLimits) -> AsyncTransport:
    # Each of the two libraries is loaded only by those who use it.
    if endpoint.is_grpc:
        from minitron_trt.clients.transport_grpc import AsyncGrpcTransport

        return AsyncGrpcTransport(endpoint, access, limits)
    from minitron_trt.clients.transport_http import AsyncHttpTransport

    return AsyncHttpTransport(endpoint, access, limits)
