"""The seam between a client and the network, and the stand-in for a server in tests."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Generator, Iterator
from typing import Protocol

from minitron_trt.clients.deadlines import Deadlines
from minitron_trt.clients.messages import Chunk, GenerateRequest
from minitron_trt.clients.model_interface import TEXT_MODEL, ModelInterface


class Transport(Protocol):
    """Carry requests to a server; errors are ServerErrors."""

    def stream(
        self, request: GenerateRequest, deadlines: Deadlines
    ) -> Generator[Chunk, None, None]:
        """Yield the answer's chunks as they come, the last one final; closing it cancels."""
        ...

    def interface(self, request: GenerateRequest, deadlines: Deadlines) -> ModelInterface:
        """Return what the request's model takes and gives; a transport asks once."""
        ...

    def ready(self, deadlines: Deadlines) -> bool:
        """Say whether the server can take requests; UnreachableError when there is none."""
        ...

    def close(self) -> None:
        """Give back the connection."""
        ...


class AsyncTransport(Protocol):
    """Carry requests to a server; errors are ServerErrors."""

    def stream(self, request: GenerateRequest, deadlines: Deadlines) -> AsyncGenerator[Chunk, None]:
        """Yield the answer's chunks as they come, the last one final; closing it cancels."""
        ...

    async def interface(self, request: GenerateRequest, deadlines: Deadlines) -> ModelInterface:
        """Return what the request's model takes and gives; a transport asks once."""
        ...

    async def ready(self, deadlines: Deadlines) -> bool:
        """Say whether the server can take requests; UnreachableError when there is none."""
        ...

    async def close(self) -> None:
        """Give back the connection."""
        ...


def echo(request: GenerateRequest) -> Iterator[Chunk]:
    """Yield the prompt as an answer: word by word when streaming, in one chunk otherwise."""
    # A word keeps the space before it, as a token does: joined, the words are the prompt again.
    words = re.findall(r"\s*\S+|\s+", request.text_input)[: request.max_tokens]
    for text in words if request.stream else ["".join(words)]:
        yield Chunk(text)
    yield Chunk("", final=True)


class _EchoRecord:
    def __init__(self) -> None:
        self.requests: list[GenerateRequest] = []
        self.cancelled: list[GenerateRequest] = []
        self.closed = False


class EchoTransport(_EchoRecord):
    """Answer with the prompt, one word per token, and remember what was asked; for tests.

    `Client(EchoTransport())` needs no server. Subclasses override `stream` to answer otherwise, or
    to raise a ServerError.
    """

    def stream(
        self, request: GenerateRequest, deadlines: Deadlines
    ) -> Generator[Chunk, None, None]:
        """Yield the prompt back."""
        self.requests.append(request)
        try:
            yield from echo(request)
        except GeneratorExit:
            self.cancelled.append(request)
            raise

    def interface(self, request: GenerateRequest, deadlines: Deadlines) -> ModelInterface:
        """Return TensorRT-LLM's model of text."""
        return TEXT_MODEL

    def ready(self, deadlines: Deadlines) -> bool:
        """Return True until closed."""
        return not self.closed

    def close(self) -> None:
        """Note that the client is done."""
        self.closed = True


class AsyncEchoTransport(_EchoRecord):
    """EchoTransport for AsyncClient."""

    async def stream(
        self, request: GenerateRequest, deadlines: Deadlines
    ) -> AsyncGenerator[Chunk, None]:
        """Yield the prompt back."""
        self.requests.append(request)
        try:
            for chunk in echo(request):
                yield chunk
        except GeneratorExit:
            self.cancelled.append(request)
            raise

    async def interface(self, request: GenerateRequest, deadlines: Deadlines) -> ModelInterface:
        """Return TensorRT-LLM's model of text."""
        return TEXT_MODEL

    async def ready(self, deadlines: Deadlines) -> bool:
        """Return True until closed."""
        return not self.closed

    async def close(self) -> None:
        """Note that the client is done."""
        self.closed = True
