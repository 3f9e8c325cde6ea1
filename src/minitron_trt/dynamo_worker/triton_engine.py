"""A Triton server as an engine of Dynamo's backend framework, which owns the worker's life.

The framework registers the model, serves requests, tells of clients that leave, and on SIGTERM
takes the worker from its router before it calls `cleanup`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Iterator
from typing import Any, Final

from dynamo.common.backend import EngineConfig, LLMEngine, LlmRegistration, WorkerConfig
from dynamo.llm.exceptions import (
    ConnectionTimeout,
    DynamoException,
    EngineShutdown,
    InvalidArgument,
    StreamIncomplete,
    Unknown,
)

from minitron_trt.clients.aio import AsyncClient
from minitron_trt.clients.messages import Chunk
from minitron_trt.dynamo_worker.model_card import ModelCard
from minitron_trt.dynamo_worker.token_answers import CANCELLED, TokenAnswer
from minitron_trt.dynamo_worker.token_requests import AskedTokens, asked_tokens
from minitron_trt.errors import (
    MinitronError,
    RefusedError,
    RequestCancelledError,
    ServerError,
    ServerTimeoutError,
    UnreachableError,
    UsageError,
    one_line,
)

log = logging.getLogger(__name__)

_ERRORS: Final[tuple[tuple[type[MinitronError], type[DynamoException]], ...]] = (
    # The frontend has another worker go on where these three end an answer.
    (RequestCancelledError, StreamIncomplete),
    (ServerTimeoutError, ConnectionTimeout),
    (UnreachableError, EngineShutdown),
    (RefusedError, InvalidArgument),
    (UsageError, InvalidArgument),
    (MinitronError, Unknown),
)
"""Dynamo's errors by ours, the most specific first."""


class TritonEngine(LLMEngine):  # type: ignore[misc]
    """Answers Dynamo's requests by Triton's model of token ids."""

    def __init__(
        self, client: AsyncClient, card: ModelCard, *, drain_s: float, block_size: int
    ) -> None:
        self._client = client
        self._card = card
        self._drain_s = drain_s
        self._block_size = block_size
        self._leaving: dict[str, asyncio.Event] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self.endpoint: Any = None

    @classmethod
    async def from_args(cls, argv: list[str] | None = None) -> tuple[LLMEngine, WorkerConfig]:
        """Refuse, where Dynamo's own launcher is given this class in place of our command."""
        raise UsageError("this engine has no options of its own; run minitron-trt dynamo-worker")

    async def start(self, worker_id: int) -> EngineConfig:
        """Return what the router must know; the server has been waited for."""
        del worker_id
        return EngineConfig(
            model=self._card.name,
            served_model_name=self._card.name,
            llm=LlmRegistration(
                context_length=self._card.context_length,
                kv_cache_block_size=self._block_size,
                max_num_seqs=self._card.batch,
            ),
        )

    async def on_endpoint_ready(self, endpoint: Any) -> None:
        """Keep the endpoint, by which the worker can be taken from the router for a while."""
        self.endpoint = endpoint

    async def health_check_payload(self) -> dict[str, Any]:
        """Return the request that tells whether tokens come, where nobody else asks."""
        return {
            "token_ids": [self._card.end_ids[0] if self._card.end_ids else 0],
            "stop_conditions": {"max_tokens": 1, "ignore_eos": True},
            "sampling_options": {"temperature": 0.0},
        }

    async def generate(self, request: Any, context: Any) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the answer's tokens as they come; the client's leaving cancels at Triton."""
        with _translated():
            asked = asked_tokens(request, self._card)
        answer = TokenAnswer(asked)
        with self._running(context.id()) as leaving:
            async with contextlib.aclosing(self._chunks(asked, leaving)) as chunks:
                async for chunk in chunks:
                    for record in answer.add(chunk):
                        yield record
                    if answer.is_complete:
                        return
        if leaving.is_set():
            yield {"token_ids": [], "index": 0, "finish_reason": CANCELLED}
            return
        for record in answer.end():
            yield record

    async def abort(self, context: Any) -> None:
        """Cancel a request at the server."""
        if (leaving := self._leaving.get(context.id())) is not None:
            leaving.set()

    async def cleanup(self) -> None:
        """Let running requests come to their ends for the drain time, then cancel the rest."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain_s):
                await self._idle.wait()
        if self._leaving:
            log.warning("%d requests were cut when the drain time was over", len(self._leaving))
        await self._client.close()

    @contextlib.contextmanager
    def _running(self, request_id: str) -> Iterator[asyncio.Event]:
        leaving = self._leaving[request_id] = asyncio.Event()
        self._idle.clear()
        try:
            yield leaving
        finally:
            self._leaving.pop(request_id, None)
            if not self._leaving:
                self._idle.set()

    async def _chunks(
        self, asked: AskedTokens, leaving: asyncio.Event
    ) -> AsyncGenerator[Chunk, None]:
        """Yield Triton's chunks until they end or the client leaves."""
        left = asyncio.ensure_future(leaving.wait())
        try:
            async with contextlib.aclosing(self._client.chunks(asked.request)) as chunks:
                while True:
                    # A task, to wait for two things: a client may leave long before the next chunk.
                    following = asyncio.ensure_future(anext(chunks, None))
                    await asyncio.wait((following, left), return_when=asyncio.FIRST_COMPLETED)
                    if not following.done():
                        following.cancel()
                        # A generator that still runs cannot be closed.
                        await asyncio.gather(following, return_exceptions=True)
                        return
                    with _translated():
                        chunk = following.result()
                    if chunk is None:
                        return
                    yield chunk
        finally:
            left.cancel()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Raise our errors as Dynamo's, by which its frontend decides what becomes of the request."""
    try:
        yield
    except MinitronError as error:
        if isinstance(error, ServerError) and error.is_passing:
            # Too busy, or about to end: another worker may have room.
            raise StreamIncomplete(one_line(str(error))) from error
        kind = next(kind for ours, kind in _ERRORS if isinstance(error, ours))
        raise kind(one_line(str(error))) from error
