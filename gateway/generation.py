"""Asking Triton on behalf of a client, who may leave: then the requests are cancelled."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeAlias, TypeVar

from starlette.types import Receive

from minitron_trt.clients.aio import AsyncClient
from minitron_trt.clients.messages import Chunk, GenerateRequest

T = TypeVar("T")
Numbered: TypeAlias = tuple[int, Chunk]
"""A chunk, and which of the prompts it answers."""


class ClientGoneError(Exception):
    """The client hung up before its answer was complete."""


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return what the work returns; when the client hangs up, cancel it and raise ClientGoneError.

    The body must have been read: only the hanging up is still to be received.
    """
    task, watcher = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        # Awaited: when this returns, the answer's streams are closed, and Triton is told.
        for each in (task, watcher):
            each.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def numbered_chunks(
    client: AsyncClient, requests: Sequence[GenerateRequest], places: AbstractContextManager[None]
) -> AsyncGenerator[Numbered, None]:
    """Yield the chunks of the answers to all requests as they come; closing it cancels them.

    The places are held while the requests run: who reads the end of an answer finds them free.
    """
    with places:
        if len(requests) > 1:
            async with contextlib.aclosing(_of_several(client, requests)) as several:
                async for numbered in several:
                    yield numbered
            return
        # As nearly always: no task and no queue between a token and its reader.
        async with contextlib.aclosing(client.chunks(requests[0])) as chunks:
            async for chunk in chunks:
                yield 0, chunk


async def _of_several(
    client: AsyncClient, requests: Sequence[GenerateRequest]
) -> AsyncGenerator[Numbered, None]:
    # Room for one: a slow reader holds the requests up, and does not fill the memory.
    queue: asyncio.Queue[Numbered | BaseException | None] = asyncio.Queue(1)
    tasks = [
        asyncio.ensure_future(_put_chunks(client, request, index, queue))
        for index, request in enumerate(requests)
    ]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _put_chunks(
    client: AsyncClient,
    request: GenerateRequest,
    index: int,
    queue: asyncio.Queue[Numbered | BaseException | None],
) -> None:
    try:
        async with contextlib.aclosing(client.chunks(request)) as chunks:
            async for chunk in chunks:
                await queue.put((index, chunk))
    except Exception as error:
        await queue.put(error)
    else:
        await queue.put(None)
