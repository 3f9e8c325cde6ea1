"""A clock that waits for nobody, and a service that answers by it."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from minitron_trt.errors import ServerError
from minitron_trt.loadtest.load_pattern import LoadPattern
from minitron_trt.loadtest.load_run import LoadRun
from minitron_trt.loadtest.request_record import RequestRecord
from minitron_trt.loadtest.workload import Question

T = TypeVar("T")


class _Jump(selectors.DefaultSelector):
    """A selector that has time pass at once, where nothing else can happen before."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        self.now += timeout or 0.0
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose seconds take no time."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now

    def now_ns(self) -> int:
        return round(self._jump.now * 1e9)


def in_virtual_time(loop: VirtualLoop, work: Coroutine[Any, Any, T]) -> T:
    """Return what some work gives."""
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(work)


@dataclass
class TimedTarget:
    """Answers with a piece after each of some seconds; every question in `failing` fails."""

    gaps_s: tuple[float, ...] = (1.0, 0.5, 0.5)
    failing: frozenset[str] = frozenset()
    model: str = "double"
    under_way: int = 0
    most: int = 0
    asked: list[str] = field(default_factory=list)

    async def check(self) -> None:
        """Be there."""

    async def ask(self, question: Question, record: RequestRecord) -> None:
        record.begin()
        self.asked.append(str(question.prompt))
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            if question.prompt in self.failing:
                raise ServerError("the double fails")
            for gap_s in self.gaps_s:
                await asyncio.sleep(gap_s)
                record.piece("word", 1)
        finally:
            self.under_way -= 1

    async def close(self) -> None:
        """Have nothing to close."""


def questions(count: int) -> list[Question]:
    """Return questions by number."""
    return [Question(str(number), 3) for number in range(count)]


def run_of(target: TimedTarget, pattern: LoadPattern, count: int = 100) -> LoadRun:
    """Return a run of a load that took no time."""
    loop = VirtualLoop()
    run = LoadRun(target, questions(count), pattern, clock=loop.now_ns)
    in_virtual_time(loop, run.run())
    return run
