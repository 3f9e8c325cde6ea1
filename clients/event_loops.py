"""Connections for asyncio: each event loop has its own, since none can move to another."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerLoop(Generic[T]):
    """One thing for each event loop that asks for it, closed at the latest when that ends."""

    def __init__(self, make: Callable[[], T], close: Callable[[T], Awaitable[object]]) -> None:
        self._make = make
        self._close = close
        self._kept: weakref.WeakKeyDictionary[
            asyncio.AbstractEventLoop, tuple[T, AsyncGenerator[None, None]]
        ] = weakref.WeakKeyDictionary()

    async def get(self) -> T:
        """Return the one of the running loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._kept:
            made = self._make()
            keeper = self._keep(made)
            self._kept[loop] = made, keeper
            await anext(keeper)
        return self._kept[loop][0]

    async def _keep(self, made: T) -> AsyncGenerator[None, None]:
        """Hold something open; a loop that ends ends its asynchronous generators before."""
        try:
            yield
        finally:
            await self._close(made)

    async def close(self) -> None:
        """Close what was made, each in its own loop."""
        here = asyncio.get_running_loop()
        for loop, (_, keeper) in list(self._kept.items()):
            self._kept.pop(loop, None)
            if loop is here:
                await keeper.aclose()
            # Not waited for: that loop may wait for this one, and may end meanwhile. In one that
            # stands still nothing can run; its end closes what it has.
            elif loop.is_running():
                with contextlib.suppress(RuntimeError):
                    asyncio.run_coroutine_threadsafe(_closed(keeper), loop)


async def _closed(keeper: AsyncGenerator[None, None]) -> None:
    await keeper.aclose()
