"""Waiting for what must happen: a machine that is busy takes its time, and only a hang fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

PATIENCE_S: Final = 240.0
"""After this a test has hung. Nothing that is right comes near it, so that no test passes by it."""


def until(condition: Callable[[], object], seconds: float = PATIENCE_S) -> None:
    """Wait until a condition holds; fail when it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


def longer_and_longer(seconds: float) -> Iterator[float]:
    """Yield a time, and longer ones for a machine too busy to do in it what a test looks at."""
    while seconds < PATIENCE_S:
        yield seconds
        seconds *= 2
