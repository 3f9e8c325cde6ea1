"""SIGTERM for what runs on asyncio, whose loop an exception at any moment would break."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

from minitron_trt.host.termination import Terminated

T = TypeVar("T")


def run_terminable(work: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine returns, as asyncio.run does; SIGTERM cancels it, as Ctrl-C does.

    Terminated is raised when all tasks have ended. The handler of `terminable` would raise it in
    whichever task runs at that moment, and end the loop in the middle of the others.
    """
    is_terminated = False

    async def watched() -> T:
        nonlocal is_terminated
        task = asyncio.current_task()

        def cancel() -> None:
            nonlocal is_terminated
            is_terminated = True
            assert task is not None
            task.cancel()

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, cancel)
        return await work

    outer = signal.getsignal(signal.SIGTERM)
    try:
        return asyncio.run(watched())
    except asyncio.CancelledError:
        if is_terminated:
            raise Terminated from None
        raise
    finally:
        # The loop leaves the default handler behind.
        signal.signal(signal.SIGTERM, outer)
