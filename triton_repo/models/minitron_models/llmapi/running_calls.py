"""The requests to TensorRT-LLM's LLM class that have not ended, and how one is ended early."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from minitron_models.stream_readers import StreamReaders
from minitron_models.triton_io import Sender
from minitron_models.triton_types import Gauge


class RunningCall:
    """A request that was taken and has not ended; made on any thread, then used on the loop's."""

    def __init__(self, request_id: str, stream_id: int | None, sender: Sender) -> None:
        self.request_id = request_id
        self.stream_id = stream_id
        self.sender = sender
        self._task: asyncio.Task[Any] | None = None
        self._stopped = False

    def begin(self) -> None:
        """Note the task that serves it, which is the caller; CancelledError if it was stopped."""
        self._task = asyncio.current_task()
        if self._stopped:
            raise asyncio.CancelledError

    def stop(self) -> None:
        """End it, also before it began."""
        self._stopped = True
        if self._task is not None:
            self._task.cancel()


class RunningCalls:
    """The requests that were taken and have not ended."""

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge
        # Triton's stub shares one message among the calls of a gauge, so the server would crash.
        self._counting = threading.Lock()
        self._calls: dict[int, RunningCall] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, request_id: str, stream_id: int | None, sender: Sender) -> RunningCall:
        """Remember a request."""
        call = RunningCall(request_id, stream_id, sender)
        self._calls[id(call)] = call
        self._count(1)
        return call

    def remove(self, call: RunningCall) -> None:
        """Forget a request that has ended."""
        del self._calls[id(call)]
        self._count(-1)

    def _count(self, change: int) -> None:
        with self._counting:
            self._gauge.increment(change)

    def stop(self, request_id: str, stream_id: int | None) -> None:
        """End the requests of a stream, else those that carry a client's id."""
        # A copy, here and below: Triton's thread adds requests while the loop's goes through them.
        for call in tuple(self._calls.values()):
            if stream_id is None:
                same = call.request_id == request_id
            else:
                same = call.stream_id == stream_id
            if same:
                call.stop()

    async def watch(self, period_s: float, readers: StreamReaders) -> None:
        """End requests whose clients left, as long as the model runs."""
        while True:
            await asyncio.sleep(period_s)
            abandoned = await asyncio.to_thread(readers.find_abandoned)
            for call in tuple(self._calls.values()):
                if call.stream_id in abandoned or call.sender.is_cancelled():
                    call.stop()

    async def end_all(self) -> None:
        """End every request and wait until they have."""
        while self._calls:
            for call in tuple(self._calls.values()):
                call.stop()
            # A turn of the loop, in which their tasks come to their ends.
            await asyncio.sleep(0)
