"""One run of a load: sends its requests when they are due, and keeps what was seen of each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from minitron_trt.errors import ServerError
from minitron_trt.loadtest.load_pattern import LoadPattern
from minitron_trt.loadtest.request_record import Clock, RequestRecord
from minitron_trt.loadtest.target import LoadTarget
from minitron_trt.loadtest.workload import Question, repeated

# A server that is gone answers at once; without a pause a closed loop would only count that.
_AFTER_ERROR_S: Final = 0.1
_NS: Final = 1_000_000_000


@dataclass(slots=True)
class LoadRun:
    """A load on a target; `records` has its requests in order, also when the run was cut short."""

    target: LoadTarget
    questions: Sequence[Question]
    pattern: LoadPattern
    seed: int = 0
    keeps_text: bool = False
    on_done: Callable[[RequestRecord], object] = lambda record: None
    clock: Clock = time.perf_counter_ns
    records: list[RequestRecord] = field(default_factory=list)
    begin_ns: int = 0
    end_ns: int = 0

    async def run(self) -> None:
        """Send the requests, and wait for their answers."""
        self.begin_ns = self.clock()
        questions = repeated(self.questions, self.pattern.request_count)
        try:
            await (self._open(questions) if self.pattern.is_open else self._closed(questions))
        except BaseExceptionGroup as group:
            # Errors of the server are in the records; what is left is one that all requests share.
            raise group.exceptions[0] from None
        finally:
            self.end_ns = self.clock()

    async def _closed(self, questions: Iterator[Question]) -> None:
        async def user() -> None:
            # One iterator for all users: a question goes to whoever is free.
            for question in questions:
                if self._is_over(self.clock()):
                    return
                if await self._ask(question, self.clock()):
                    await asyncio.sleep(_AFTER_ERROR_S)

        async with asyncio.TaskGroup() as users:
            for _ in range(self.pattern.concurrency or 1):
                users.create_task(user())

    async def _open(self, questions: Iterator[Question]) -> None:
        arrivals_s = self.pattern.arrivals_s(self.questions, self.seed)
        async with asyncio.TaskGroup() as requests:
            # The shorter one ends it: a trace's arrivals do, those of a rate go on for ever.
            for question, at_s in zip(questions, arrivals_s, strict=False):
                due_ns = self.begin_ns + round(at_s * _NS)
                if self._is_over(due_ns):
                    return
                # Also where it is late, others get their turn.
                await asyncio.sleep(max(0.0, (due_ns - self.clock()) / _NS))
                requests.create_task(self._ask(question, due_ns))

    def _is_over(self, at_ns: int) -> bool:
        duration_s = self.pattern.duration_s
        return duration_s is not None and at_ns - self.begin_ns >= duration_s * _NS

    async def _ask(self, question: Question, due_ns: int) -> ServerError | None:
        """Ask one question; return what it failed with."""
        record = RequestRecord(
            len(self.records), due_ns, self.clock, texts=[] if self.keeps_text else None
        )
        self.records.append(record)
        try:
            await self.target.ask(question, record)
        except ServerError as error:
            record.end(error)
        else:
            record.end()
        self.on_done(record)
        return record.error
