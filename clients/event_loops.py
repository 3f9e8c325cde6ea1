"""Connections for asyncio: each event loop has its own, since none can move to another."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerLoop(Generic[T]):
    """One thing for each event loop that asks for it, made when it first does."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, T] = (
            weakref.WeakKeyDictionary()
        )

    def get(self) -> T:
        """Return the one of the running loop."""
        loop = asyncio.get_running_loop()
        made = self._made.get(loop)
        if made is None:
            made = self._made[loop] = self._make()
        return made

    async def close(self, close: Callable[[T], Awaitable[object]]) -> None:
        """Close what was made, each in its own loop; that of a loop that has ended is dropped."""
        here = asyncio.get_running_loop()
        for loop, made in list(self._made.items()):
            self._made.pop(loop, None)
            if loop is here:
                await close(made)
            elif loop.is_running():
                with contextlib.suppress(RuntimeError):
                    asyncio.run_coroutine_threadsafe(_closed(close, made), loop)


async def _closed(close: Callable[[T], Awaitable[object]], made: T) -> None:
    await close(made)
