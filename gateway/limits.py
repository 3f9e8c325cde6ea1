"""What one client, and all of them together, may take: bodies, requests a minute, sequences."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from starlette.types import Receive

from minitron_trt.gateway.generation import ClientGoneError
from minitron_trt.gateway.openai_errors import ApiError, too_many

_MOST_CLIENTS: Final = 10_000


@dataclass(frozen=True, slots=True)
class GatewayLimits:
    """Limits to requests; `rate_per_minute` is of each key, without keys of each address."""

    body_bytes: int = 2**20
    body_s: float = 30.0
    running: int = 256
    rate_per_minute: int | None = None


async def read_limited(receive: Receive, limits: GatewayLimits, told_bytes: int | None) -> bytes:
    """Return a request's body; ApiError when it is too large or too slow."""
    if told_bytes is not None and told_bytes > limits.body_bytes:
        raise _too_large(limits)
    # A client may tell less than it sends, or nothing: what comes is counted as well.
    parts: list[bytes] = []
    room = limits.body_bytes
    try:
        async with asyncio.timeout(limits.body_s):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                parts.append(message.get("body", b""))
                room -= len(parts[-1])
                if room < 0:
                    raise _too_large(limits)
                more = message.get("more_body", False)
    except TimeoutError as error:
        raise ApiError(f"The body did not come within {limits.body_s:g} s.", status=408) from error
    return b"".join(parts)


def _too_large(limits: GatewayLimits) -> ApiError:
    return ApiError(
        f"The body is larger than {limits.body_bytes} bytes.",
        status=413,
        code="request_too_large",
    )


class Places:
    """Sequences that may run at a time, of all clients together."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0

    @contextlib.contextmanager
    def take(self, count: int) -> Iterator[None]:
        """Hold so many places; ApiError when they are not free."""
        if count > self.most:
            raise ApiError(
                f"The request asks for {count} sequences; this server makes {self.most} at a time."
            )
        # One event loop asks: nothing comes between this look and the taking.
        if self.taken + count > self.most:
            raise too_many("The server is busy; try again in a moment.", retry_after_s=1)
        self.taken += count
        try:
            yield
        finally:
            self.taken -= count


class Rates:
    """How many requests each client has left, by token buckets that hold a minute's worth."""

    def __init__(
        self, per_minute: int | None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def spend(self, client: str) -> None:
        """Take one request from a client; ApiError when it has none left."""
        if self._per_minute is None:
            return
        now, per_s = self._clock(), self._per_minute / 60
        # Taken out and put back at the end: the order is that of the last requests.
        left, since = self._buckets.pop(client, (float(self._per_minute), now))
        left = min(self._per_minute, left + (now - since) * per_s)
        is_allowed = left >= 1
        self._buckets[client] = (left - is_allowed, now)
        # Who was not seen for long is forgotten: addresses are without number.
        while len(self._buckets) > _MOST_CLIENTS:
            self._buckets.popitem(last=False)
        if not is_allowed:
            raise too_many(
                f"Rate limit reached: {self._per_minute} requests per minute.",
                retry_after_s=math.ceil((1 - left) / per_s),
            )
