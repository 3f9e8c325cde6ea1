"""How far some work is: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

# Seconds between two lines: at first, and after a minute, so that the log of hours stays short.
_LINE_S: Final = 5.0
_LATER_S: Final = 30.0
_AT_FIRST_S: Final = 60.0

Amount = Callable[[float], str]
"""Return a number with its unit, as text."""

log = logging.getLogger("minitron_trt")


@contextlib.contextmanager
def progress_bar(label: str, total: int, amount: Amount) -> Iterator[Callable[[int], None]]:
    """Show a bar, how much is done, the rate and the time left; nothing of it stays."""
    # It takes longer to import than most commands take to run.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Done(ProgressColumn):
        """How much of how much, and the rate once there is one."""

        def render(self, task: Task) -> Text:
            """Return the words."""
            rate = f", {amount(task.speed)}/s" if task.speed else ""
            return Text(f"{amount(task.completed)} of {amount(total)}{rate}")

    columns = (TextColumn("{task.description}"), BarColumn(), Done(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as display:
        task = display.add_task(label, total=total)
        yield lambda done: display.advance(task, done)


@contextlib.contextmanager
def progress_lines(label: str, total: int, amount: Amount) -> Iterator[Callable[[int], None]]:
    """Log a line every few seconds, later less often; none when the work is done before."""
    done, finished, start = 0, threading.Event(), time.monotonic()

    def advance(more: int) -> None:
        nonlocal done
        done += more

    def report() -> None:
        while not finished.wait(_pause(time.monotonic() - start)):
            log.info("%s", progress_line(label, done, total, time.monotonic() - start, amount))

    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    try:
        yield advance
    finally:
        finished.set()
        reporter.join()


def _pause(seconds: float) -> float:
    return _LINE_S if seconds < _AT_FIRST_S else _LATER_S


def progress_line(label: str, done: int, total: int, seconds: float, amount: Amount) -> str:
    """Return how far it is in words: share, amount, rate and the time left at that rate."""
    share = f"{100 * done / total:.0f} %, " if total else ""
    text = f"{label}: {share}{amount(done)} of {amount(total)} in {duration_text(seconds)}"
    if not done:
        return text
    rate = done / seconds
    left = duration_text(max(total - done, 0) / rate)
    return f"{text}, {amount(rate)}/s, about {left} left"


def duration_text(seconds: float) -> str:
    """Return a time as people say it: seconds, minutes, or hours and minutes."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
