"""SIGTERM as an exception, so that what runs cleans up as after Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


class Terminated(KeyboardInterrupt):
    """SIGTERM, by which service managers and `kill` end a program."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Turn SIGTERM into Terminated, unless a program around this one handles it already."""

    def terminate(number: int, frame: object) -> None:
        raise Terminated

    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
