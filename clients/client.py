"""The client: one connection, answers as text."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
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
    from concurrent.futures import Future

    from minitron_trt.clients.model_interface import ModelInterface
    from minitron_trt.clients.transport import Transport


class TextStream(Iterator[Chunk]):
    """The pieces of one answer as they come; leaving its `with` block early cancels it.

    It belongs to one thread; another may `close` it.
    """

    def __init__(
        self, chunks: Generator[Chunk, None, None], request: GenerateRequest, deadlines: Deadlines
    ) -> None:
        self.request = request
        self._chunks = chunks
        self._collector = Collector(request)
        self._deadlines = deadlines

    def __next__(self) -> Chunk:
        self._collector.begin()
        for chunk in self._chunks:
            self._collector.add(chunk)
            if chunk.says_something:
                return chunk
        raise StopIteration

    @property
    def completion(self) -> Completion:
        """Return the answer as far as it has come."""
        return self._collector.first()

    def read(self) -> Completion:
        """Return the whole answer."""
        for _ in self:
            pass
        return self.completion

    def close(self) -> None:
        """Cancel the request unless the answer is complete."""
        try:
            self._chunks.close()
        except ValueError:
            # "generator already executing": another thread waits in it, and goes on when the
            # connection is cut.
            self._deadlines.cancel()

    def __enter__(self) -> TextStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Client:
    """Talk to a Triton server; safe to share between threads, good for any number of requests."""

    def __init__(
        self, transport: Transport, *, timeouts: Timeouts | None = None, max_retries: int = 2
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
    ) -> Client:
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

    def generate(self, prompt: Prompt = "", **options: Any) -> Completion:
        """Return a whole answer; `options` are fields of GenerateRequest.

        UsageError when the request asks for several sequences.
        """
        with self.stream(prompt, **{"count_tokens": True, **options}) as pieces:
            return pieces.read()

    def chat(self, messages: str | Sequence[Mapping[str, str]], **options: Any) -> Completion:
        """Return the answer to a conversation, by the chat template of the model.

        Messages have a role and content each; a text is one message of the user.
        """
        return self.generate(as_conversation(messages), **options)

    def stream(self, prompt: Prompt = "", **options: Any) -> TextStream:
        """Return the pieces of an answer as they come; the request is sent when iteration starts.

        UsageError when the request asks for several sequences.
        """
        request, deadlines = as_request(prompt, options), Deadlines(self._timeouts)
        check_single(request)
        return TextStream(self._chunks(request, deadlines), request, deadlines)

    def generate_many(
        self,
        prompts: Iterable[Prompt],
        *,
        concurrency: int = 8,
        ordered: bool = True,
        on_error: Callable[[GenerateRequest, ServerError], object] | None = None,
        **options: Any,
    ) -> Generator[Completion, None, None]:
        """Yield the answers to many prompts, so many at a time, in their order or as they come.

        Prompts are taken as answers are, so they may be endless; a completion's `request` says
        which it was. The first ServerError ends it all, unless `on_error` takes them. Closing the
        generator cancels what runs.
        """
        if concurrency < 1:
            raise UsageError(f"concurrency is {concurrency}; expected 1 or more")
        options = {"count_tokens": True, **options}
        streams = (self.stream(prompt, **options) for prompt in prompts)
        return self._many(streams, concurrency, ordered, on_error)

    def chunks(self, prompt: Prompt = "", **options: Any) -> Generator[Chunk, None, None]:
        """Yield an answer's chunks, of several sequences too; closing the generator cancels."""
        return self._chunks(as_request(prompt, options), Deadlines(self._timeouts))

    def completions(self, prompt: Prompt = "", **options: Any) -> Sequence[Completion]:
        """Return every sequence of an answer."""
        request = as_request(prompt, {"count_tokens": True, **options})
        collector = Collector(request)
        collector.begin()
        with contextlib.closing(self.chunks(request)) as chunks:
            for chunk in chunks:
                collector.add(chunk)
        return collector.completions()

    def interface(self, model: str) -> ModelInterface:
        """Return what a model takes and gives; RefusedError when the server does not know it."""
        deadlines = Deadlines(self._timeouts)
        deadlines.begin()
        return self._transport.interface(GenerateRequest(model=model), deadlines)

    def ready(self) -> bool:
        """Say whether the server can take requests; UnreachableError when there is none."""
        deadlines = Deadlines(self._timeouts)
        deadlines.begin()
        return self._transport.ready(deadlines)

    def close(self) -> None:
        """Close the connection; requests under way are cancelled."""
        self._is_closed = True
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _chunks(
        self, request: GenerateRequest, deadlines: Deadlines
    ) -> Generator[Chunk, None, None]:
        """Yield an answer's chunks, and close its stream whatever ends it."""
        if self._is_closed:
            raise UsageError("the client is closed; make another one with connect()")
        deadlines.begin()
        with request_span(request) as span:
            stream, chunk = self._begin(span.request, deadlines)
            with contextlib.closing(stream):
                while chunk is not None:
                    span.note(chunk)
                    yield chunk
                    chunk = next(stream, None)

    def _begin(
        self, request: GenerateRequest, deadlines: Deadlines
    ) -> tuple[Generator[Chunk, None, None], Chunk | None]:
        """Return a stream with its first chunk; before that, try again what may pass."""
        retries = 0
        while True:
            stream = self._transport.stream(request, deadlines)
            try:
                return stream, next(stream, None)
            except ServerError as error:
                delay_s = self._retries.delay_s(error, retries, deadlines)
                if delay_s is None:
                    raise
            time.sleep(delay_s)
            retries += 1

    def _many(
        self,
        streams: Iterator[TextStream],
        concurrency: int,
        ordered: bool,
        on_error: Callable[[GenerateRequest, ServerError], object] | None,
    ) -> Generator[Completion, None, None]:
        # Who asks one thing at a time need not load it.
        from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

        running: deque[tuple[Future[Completion], TextStream]] = deque()
        threads = ThreadPoolExecutor(concurrency, thread_name_prefix="minitron-trt")
        # Answers that wait for an earlier one hold nobody up, up to as many again.
        window = concurrency * 2 if ordered else concurrency
        try:
            while True:
                while len(running) < window and (stream := next(streams, None)) is not None:
                    running.append((threads.submit(stream.read), stream))
                if not running:
                    return
                if not ordered:
                    done, _ = wait([future for future, _ in running], return_when=FIRST_COMPLETED)
                    while running[0][0] not in done:
                        running.rotate(-1)
                future, stream = running.popleft()
                try:
                    completion = future.result()
                except ServerError as error:
                    if on_error is None:
                        raise
                    on_error(stream.request, error)
                else:
                    yield completion
        finally:
            # Before the pool: its end waits for threads, and those for their answers.
            for _, stream in running:
                stream.close()
            threads.shutdown(cancel_futures=True)


def _transport(endpoint: Endpoint, access: Access, limits: SizeLimits) -> Transport:
    # Each of the two libraries is loaded only by those who use it.
    if endpoint.is_grpc:
        from minitron_trt.clients.transport_grpc import GrpcTransport

        return GrpcTransport(endpoint, access, limits)
    from minitron_trt.clients.transport_http import HttpTransport

    return HttpTransport(endpoint, access, limits)
