"""The client: one connection, answers as text."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from types import TracebackType

from minitron_trt.clients.completions import Completion, check_single, collect
from minitron_trt.clients.endpoint import Access, Endpoint, Timeouts
from minitron_trt.clients.messages import Chunk, GenerateRequest
from minitron_trt.clients.transport import Transport


class TextStream(Iterator[str]):
    """The text of one answer, piece by piece; leaving its `with` block early cancels it."""

    def __init__(self, chunks: Generator[Chunk, None, None]) -> None:
        self._chunks = chunks

    def __next__(self) -> str:
        for chunk in self._chunks:
            if chunk.text:
                return chunk.text
        raise StopIteration

    def close(self) -> None:
        """Cancel the request unless the answer is complete."""
        self._chunks.close()

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

    def __init__(self, transport: Transport) -> None:
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
    ) -> Client:
        """Return a client for a grpc://, grpcs://, http:// or https:// URL.

        Nothing is sent before the first use. The environment's proxies are used for other machines
        only, unless `environment_proxy` says otherwise. UsageError when the URL is not one.
        """
        endpoint = Endpoint.parse(url, environment_proxy=environment_proxy)
        access = access or Access()
        access.check(endpoint)
        return cls(_transport(endpoint, Timeouts(timeout_s, connect_timeout_s), access))

    def generate(self, request: GenerateRequest) -> str:
        """Return the whole text of an answer."""
        with self.stream(request) as texts:
            return "".join(texts)

    def stream(self, request: GenerateRequest) -> TextStream:
        """Return the text of an answer as it is made; the request is sent when iteration starts.

        UsageError when the request asks for several sequences.
        """
        check_single(request)
        return TextStream(self._transport.stream(request))

    def chunks(self, request: GenerateRequest) -> Generator[Chunk, None, None]:
        """Yield an answer's chunks, of several sequences too; closing the generator cancels."""
        return self._transport.stream(request)

    def completions(self, request: GenerateRequest) -> Sequence[Completion]:
        """Return every sequence of an answer, with the other outputs that were asked for."""
        with contextlib.closing(self.chunks(request)) as chunks:
            return collect(chunks)

    def ready(self) -> bool:
        """Say whether the server can take requests; UnreachableError when there is none."""
        return self._transport.ready()

    def close(self) -> None:
        """Close the connection; requests under way are cancelled."""
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


def _transport(endpoint: Endpoint, timeouts: Timeouts, access: Access) -> Transport:
    # Each of the two libraries is loaded only by those who use it.
    if endpoint.is_grpc:
        from minitron_trt.clients.transport_grpc import GrpcTransport

        return GrpcTransport(endpoint, timeouts, access)
    from minitron_trt.clients.transport_http import HttpTransport

    return HttpTransport(endpoint, timeouts, access)
