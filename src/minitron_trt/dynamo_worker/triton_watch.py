"""Whether Triton is there: while it is not ready, a worker is taken from its router."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Final, Protocol

from minitron_trt.clients.aio import AsyncClient
from minitron_trt.errors import ServerError

log = logging.getLogger(__name__)

EVERY_S: Final = 1.0
# A server that is busy loading or draining answers late; one that is gone answers never.
_MISSES: Final = 3


class Listing(Protocol):
    """Dynamo's endpoint, as far as it is listed for routers."""

    async def register_endpoint_instance(self) -> None:
        """List it."""

    async def unregister_endpoint_instance(self) -> None:
        """Take it from the list."""


class TritonWatch:
    """Asks Triton again and again; `fault` tells that it is gone, and why."""

    def __init__(
        self,
        client: AsyncClient,
        endpoint: Callable[[], Listing | None],
        on_gone: Callable[[], object],
        *,
        every_s: float = EVERY_S,
    ) -> None:
        self._client = client
        self._endpoint = endpoint
        self._on_gone = on_gone
        self._every_s = every_s
        self._is_listed = True
        self.fault: ServerError | None = None

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Watch while a block runs."""
        task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _watch(self) -> None:
        misses = 0
        while misses < _MISSES:
            await asyncio.sleep(self._every_s)
            try:
                await self._list(await self._client.ready())
                misses = 0
            except ServerError as error:
                misses += 1
                # Only once it is certain: a worker that is ended meanwhile ends without a fault.
                self.fault = error if misses == _MISSES else None
        log.warning("Triton is gone; the worker ends, and its requests go on elsewhere")
        self._on_gone()

    async def _list(self, is_ready: bool) -> None:
        endpoint = self._endpoint()
        if endpoint is None or is_ready == self._is_listed:
            return
        log.warning("Triton is %s", "ready again" if is_ready else "not ready: no requests to it")
        if is_ready:
            await endpoint.register_endpoint_instance()
        else:
            await endpoint.unregister_endpoint_instance()
        self._is_listed = is_ready
