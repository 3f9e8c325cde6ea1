"""What the load generator itself costs: where it is busy, it measures itself."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

_TICK_S: Final = 0.02
# Of answers that come at random, such a share finds the loop at work and waits.
_BUSY_SHARE: Final = 0.8
_LATE_MS: Final = 20.0


@dataclass(slots=True)
class ClientOverhead:
    """Processor and wall seconds of this process during a run, and how late its loop woke up.

    `delays_ms` are of a task that asks to be woken every 20 ms: answers wait for their time stamp
    as long as it waited.
    """

    processor_s: float = 0.0
    wall_s: float = 0.0
    delays_ms: list[float] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def measured(self) -> AsyncIterator[None]:
        """Measure while the block runs."""
        # Of all threads of the process: grpc has its own beside the loop.
        processor, wall = time.process_time(), time.perf_counter()
        watch = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watch.cancel()
            self.processor_s = time.process_time() - processor
            self.wall_s = time.perf_counter() - wall

    async def _watch(self) -> None:
        while True:
            due = time.perf_counter() + _TICK_S
            await asyncio.sleep(_TICK_S)
            self.delays_ms.append(1000 * max(0.0, time.perf_counter() - due))

    @property
    def core_share(self) -> float:
        """Return how much of one core it took."""
        return self.processor_s / self.wall_s if self.wall_s else 0.0

    @property
    def late_ms(self) -> float:
        """Return the delay that 99 of 100 did not pass."""
        return float(np.percentile(self.delays_ms, 99)) if self.delays_ms else 0.0

    @property
    def is_busy(self) -> bool:
        """Say whether the client may have been what was measured."""
        return self.core_share > _BUSY_SHARE

    @property
    def is_late(self) -> bool:
        """Say whether it was kept waiting, by itself or by others on its machine."""
        return self.late_ms > _LATE_MS

    def as_record(self, tokens: float) -> dict[str, Any]:
        """Return it for JSON, beside the tokens that came meanwhile."""
        return {
            "processor_s": self.processor_s,
            "wall_s": self.wall_s,
            "core_share": self.core_share,
            "processor_us_per_token": 1e6 * self.processor_s / tokens if tokens else None,
            "loop_delay_p99_ms": self.late_ms,
        }

    @classmethod
    def together(cls, parts: list[ClientOverhead]) -> ClientOverhead:
        """Return that of several runs."""
        return cls(
            processor_s=sum(part.processor_s for part in parts),
            wall_s=sum(part.wall_s for part in parts),
            delays_ms=[delay for part in parts for delay in part.delays_ms],
        )
