"""A load test: loads put on a target one after another, each warmed up and repeated."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final, TypeAlias

from minitron_trt.console import Advance, ShowProgress, no_display
from minitron_trt.loadtest.client_overhead import ClientOverhead
from minitron_trt.loadtest.load_pattern import LoadPattern
from minitron_trt.loadtest.load_run import LoadRun
from minitron_trt.loadtest.metrics import (
    REQUEST_METRICS,
    RUN_METRICS,
    GoodputLimits,
    Summary,
    figures_of,
)
from minitron_trt.loadtest.request_record import RequestRecord
from minitron_trt.loadtest.server_metrics import MetricsScraper, ServerSeries, added
from minitron_trt.loadtest.significance import Interval, interval
from minitron_trt.loadtest.target import LoadTarget
from minitron_trt.loadtest.workload import Question, TokenCounter

Workload: TypeAlias = Callable[[int], Sequence[Question]]
"""Return the questions of a run by its number, counted over all loads; of a warm-up it is -1."""

WARM_UP: Final = -1
# They follow from how long a run was, and say nothing of the server.
_NOT_OVER_RUNS: Final = frozenset({"count", "sum"})


@dataclass(slots=True)
class MeasuredRun:
    """One run of a load, and what was measured beside it."""

    run: LoadRun
    epoch_ns: int  # what the clock's 0 is in time since 1970
    overhead: ClientOverhead = field(default_factory=ClientOverhead)
    series: list[ServerSeries] = field(default_factory=list)
    is_complete: bool = False

    @property
    def records(self) -> Sequence[RequestRecord]:
        """Return the requests that ended by themselves."""
        return [record for record in self.run.records if record.is_done]


# Without slots, as cached_property keeps what it computed in __dict__.
@dataclass(frozen=True)
class LoadResult:
    """A load and its runs, of which the last may be cut short.

    Figures are computed once, when they are first asked for: not before the load has ended.
    """

    pattern: LoadPattern
    limits: GoodputLimits | None
    streams: bool
    runs: list[MeasuredRun] = field(default_factory=list)

    @property
    def records(self) -> Sequence[RequestRecord]:
        """Return the requests of all runs."""
        return [record for run in self.runs for record in run.records]

    @property
    def is_complete(self) -> bool:
        """Say whether every run came to its end."""
        return all(run.is_complete for run in self.runs)

    @property
    def overhead(self) -> ClientOverhead:
        """Return what the client cost in all runs."""
        return ClientOverhead.together([run.overhead for run in self.runs])

    @property
    def series(self) -> list[ServerSeries]:
        """Return the server's own metrics over all runs."""
        return added([run.series for run in self.runs])

    @cached_property
    def figures(self) -> dict[str, Summary]:
        """Return the metrics of all runs, their requests pooled."""
        return self._figures(self.runs)

    @cached_property
    def run_figures(self) -> list[dict[str, Summary]]:
        """Return the metrics of each run by itself."""
        return [self._figures([run]) for run in self.runs]

    @cached_property
    def intervals(self) -> dict[tuple[str, str], Interval]:
        """Return each figure over the runs by tag and name; none of a single run."""
        if len(self.runs) < 2:
            return {}
        runs = self.run_figures
        return {
            (tag, name): interval([run[tag][name] for run in runs])
            for tag, summary in runs[0].items()
            for name in summary
            if name not in _NOT_OVER_RUNS and all(name in run.get(tag, {}) for run in runs)
        }

    def errors(self) -> dict[tuple[str, str], int]:
        """Return how often each kind of error came, with its words."""
        counts: dict[tuple[str, str], int] = {}
        for record in self.records:
            if record.error is not None:
                key = (type(record.error).__name__, str(record.error))
                counts[key] = counts.get(key, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: -item[1]))

    def _figures(self, runs: Sequence[MeasuredRun]) -> dict[str, Summary]:
        records = [run.records for run in runs]
        return figures_of(records, limits=self.limits, streams=self.streams)


UNITS: Final = {
    **{metric.tag: metric.unit for metric in REQUEST_METRICS},
    **{tag: unit for tag, (_, unit) in RUN_METRICS.items()},
}
HEADERS: Final = {
    **{metric.tag: metric.header for metric in REQUEST_METRICS},
    **{tag: header for tag, (header, _) in RUN_METRICS.items()},
}


@dataclass(slots=True)
class LoadTest:
    """Loads on a target; `results` has what was measured so far, whatever ended it."""

    target: LoadTarget
    workload: Workload
    patterns: Sequence[LoadPattern]
    repeats: int = 1
    warmup: int = 0
    seed: int = 0
    streams: bool = True
    limits: GoodputLimits | None = None
    counter: TokenCounter | None = None
    scraper: MetricsScraper | None = None
    progress: ShowProgress = no_display
    results: list[LoadResult] = field(default_factory=list)

    async def run(self) -> None:
        """Put on every load; ServerError when the target is not there."""
        try:
            await self.target.check()
            for pattern in self.patterns:
                result = LoadResult(pattern, self.limits, self.streams)
                self.results.append(result)
                await self._warm_up(pattern)
                for number in range(self.repeats):
                    await self._measure(result, number)
        finally:
            await self.target.close()

    async def _warm_up(self, pattern: LoadPattern) -> None:
        if self.warmup:
            short = replace(pattern, request_count=self.warmup, duration_s=None)
            await LoadRun(self.target, self.workload(WARM_UP), short, self.seed).run()

    async def _measure(self, result: LoadResult, number: int) -> None:
        run = LoadRun(
            target=self.target,
            questions=self.workload(sum(len(each.runs) for each in self.results)),
            pattern=result.pattern,
            # Every run has arrivals of its own.
            seed=self.seed + number,
            # Counted after the load: a tokenizer at work would hold answers up.
            keeps_text=self.counter is not None,
        )
        measured = MeasuredRun(run, time.time_ns() - time.perf_counter_ns())
        result.runs.append(measured)
        label = result.pattern.label
        if self.repeats > 1:
            label += f", {number + 1}/{self.repeats}"
        # The client is measured innermost: the pages of metrics before and after are no load.
        async with self._scraped(measured), self._shown(run, label), measured.overhead.measured():
            await run.run()
        measured.is_complete = True

    @contextlib.asynccontextmanager
    async def _scraped(self, measured: MeasuredRun) -> AsyncIterator[None]:
        """Have the server's metrics read meanwhile."""
        if self.scraper is None:
            yield
            return
        try:
            async with self.scraper.reading():
                yield
        finally:
            # Of a run that was cut short, what was read by then.
            measured.series = self.scraper.series()

    @contextlib.asynccontextmanager
    async def _shown(self, run: LoadRun, label: str) -> AsyncIterator[None]:
        """Show how far a run is: by its requests, or by the time where that ends it."""
        pattern = run.pattern
        if pattern.duration_s is None:
            total = pattern.request_count or len(run.questions)
            with self.progress(label, total, "requests") as advance:
                run.on_done = lambda _: advance(1)
                yield
            return
        with self.progress(label, round(pattern.duration_s), "s") as advance:
            clock = asyncio.create_task(_tick(advance))
            try:
                yield
            finally:
                clock.cancel()

    def count_tokens(self) -> None:
        """Count the tokens of answers that the server did not count."""
        for record in (record for result in self.results for record in result.records):
            if self.counter is not None and record.counted_tokens is None and record.texts:
                record.counted_tokens = self.counter.count("".join(record.texts))
            record.texts = None


async def _tick(advance: Advance) -> None:
    while True:
        await asyncio.sleep(1)
        advance(1)
