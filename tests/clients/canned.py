"""Stand-ins for a server that answer every request with the same chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterable

from minitron_trt.clients.deadlines import Deadlines
from minitron_trt.clients.messages import Chunk, GenerateRequest
from minitron_trt.clients.transport import AsyncEchoTransport, EchoTransport


class Canned(EchoTransport):
    """Answers Client with the chunks."""

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        super().__init__()
        self._chunks = chunks

    def stream(
        self, request: GenerateRequest, deadlines: Deadlines
    ) -> Generator[Chunk, None, None]:
        self.requests.append(request)
        yield from self._chunks


class AsyncCanned(AsyncEchoTransport):
    """Answers AsyncClient with the chunks."""

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        super().__init__()
        self._chunks = chunks

    async def stream(
        self, request: GenerateRequest, deadlines: Deadlines
    ) -> AsyncGenerator[Chunk, None]:
        self.requests.append(request)
        for chunk in self._chunks:
            yield chunk
