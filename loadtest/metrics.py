"""The figures of a load test, by the names, units and definitions of NVIDIA's aiperf.

Times are the client's. A piece is a part of an answer that has text; the first and the last piece
of an answer are what most figures are made of, as in aiperf, and in genai-perf before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from minitron_trt.errors import UsageError
from minitron_trt.loadtest.request_record import RequestRecord
from minitron_trt.option_types import suggestion

_MS: Final = 1e6
_S: Final = 1e9
PERCENTILES: Final = (1, 5, 10, 25, 50, 75, 90, 95, 99)
Summary = Mapping[str, float]
"""Figures of a metric by name: avg, min, max, std, count, sum, p1 to p99."""


@dataclass(frozen=True, slots=True)
class RequestMetric:
    """A figure of each valid request: none where it does not apply, several of each gap."""

    tag: str
    header: str
    unit: str
    values: Callable[[RequestRecord], Sequence[float]]
    larger_is_better: bool = False
    is_of_stream: bool = False
    has_several: bool = False


def _inter_token(record: RequestRecord) -> Sequence[float]:
    # One piece has no gap in it, whatever the tokens.
    if len(record.pieces_ns) < 2 or record.output_tokens < 2:
        return ()
    # A server may bundle several tokens into its first piece. The divisor leaves them out, as in
    # aiperf with --per-chunk-usage, and one where nobody counts, or where the first piece counts
    # for the whole.
    first = record.tokens_at_first or 1
    later = record.output_tokens - (first if first < record.output_tokens else 1)
    return ((record.latency_ns - record.first_ns) / later / _MS,)


def _second_token(record: RequestRecord) -> Sequence[float]:
    pieces = record.pieces_ns
    return ((pieces[1] - pieces[0]) / _MS,) if len(pieces) > 1 else ()


def _per_user(record: RequestRecord) -> Sequence[float]:
    return [1000 / gap for gap in _inter_token(record) if gap]


def _tokens_of_prompt(record: RequestRecord) -> Sequence[float]:
    return () if record.input_tokens is None else (record.input_tokens,)


REQUEST_METRICS: Final = (
    RequestMetric(
        "time_to_first_token",
        "Time to First Token",
        "ms",
        lambda record: (record.first_ns / _MS,),
        is_of_stream=True,
    ),
    RequestMetric(
        "time_to_second_token", "Time to Second Token", "ms", _second_token, is_of_stream=True
    ),
    RequestMetric(
        "request_latency", "Request Latency", "ms", lambda record: (record.latency_ns / _MS,)
    ),
    RequestMetric(
        "inter_token_latency", "Inter Token Latency", "ms", _inter_token, is_of_stream=True
    ),
    RequestMetric(
        "inter_chunk_latency",
        "Inter Chunk Latency",
        "ms",
        lambda record: [(b - a) / _MS for a, b in pairwise(record.pieces_ns)],
        is_of_stream=True,
        has_several=True,
    ),
    RequestMetric(
        "decode_duration",
        "Decode Duration",
        "ms",
        lambda record: ((record.latency_ns - record.first_ns) / _MS,),
        is_of_stream=True,
    ),
    RequestMetric(
        "output_token_throughput_per_user",
        "Output Token Throughput Per User",
        "tokens/sec/user",
        _per_user,
        larger_is_better=True,
        is_of_stream=True,
    ),
    RequestMetric(
        "e2e_output_token_throughput",
        "E2E Output Token Throughput",
        "tokens/sec/user",
        lambda record: (record.output_tokens / (record.latency_ns / _S),),
        larger_is_better=True,
    ),
    RequestMetric(
        "prefill_throughput_per_user",
        "Prefill Throughput Per User",
        "tokens/sec/user",
        lambda record: [n / (record.first_ns / _S) for n in _tokens_of_prompt(record)],
        larger_is_better=True,
        is_of_stream=True,
    ),
    RequestMetric(
        "output_sequence_length",
        "Output Sequence Length",
        "tokens",
        lambda record: (record.output_tokens,),
        larger_is_better=True,
    ),
    RequestMetric(
        "input_sequence_length",
        "Input Sequence Length",
        "tokens",
        _tokens_of_prompt,
        larger_is_better=True,
    ),
    RequestMetric(
        "credit_to_start_latency",
        "Credit-to-Start Latency",
        "ms",
        lambda record: (max(0, record.start_ns - record.due_ns) / _MS,),
    ),
    RequestMetric(
        "effective_latency",
        "Effective Latency",
        "ms",
        lambda record: (max(0, record.end_ns - record.due_ns) / _MS,),
    ),
)
"""What each request has; the last two count from when the load wanted it sent."""

RUN_METRICS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "request_throughput": ("Request Throughput", "requests/sec"),
        "request_count": ("Request Count", "requests"),
        "output_token_throughput": ("Output Token Throughput", "tokens/sec"),
        "total_token_throughput": ("Total Token Throughput", "tokens/sec"),
        "total_osl": ("Total Output Sequence Length", "tokens"),
        "total_isl": ("Total Input Sequence Length", "tokens"),
        "benchmark_duration": ("Benchmark Duration", "sec"),
        "goodput": ("Goodput", "requests/sec"),
        "good_request_count": ("Good Request Count", "requests"),
        "good_request_fraction": ("Good Request Fraction", "ratio"),
        "error_request_count": ("Error Request Count", "requests"),
        "completed_request_count": ("Completed Requests (Success + Error)", "requests"),
        "request_error_rate": ("Request Error Rate", "%"),
        "effective_concurrency": ("Effective Concurrency", "requests"),
    }
)
"""What a run has as a whole: header and unit."""

LOWER_IS_BETTER: Final = frozenset(
    {metric.tag for metric in REQUEST_METRICS if not metric.larger_is_better}
    | {"error_request_count", "request_error_rate"}
)


@dataclass(frozen=True, slots=True)
class GoodputLimits:
    """What a request must keep to be a good one: by metric, in the metric's unit."""

    of: Mapping[str, float]

    @classmethod
    def parse(cls, text: str) -> GoodputLimits:
        """Read `TAG:VALUE …`; UsageError for a metric that there is not."""
        limits = {}
        known = {metric.tag for metric in REQUEST_METRICS}
        for word in text.split():
            tag, _, value = word.partition(":")
            if tag not in known:
                hint = suggestion(tag, known)
                raise UsageError(f"--goodput has {tag!r}, which is no metric of a request{hint}")
            try:
                limits[tag] = float(value)
            except ValueError:
                limits[tag] = math.nan
            # NaN would be a limit that nothing passes.
            if not math.isfinite(limits[tag]):
                raise UsageError(
                    f"--goodput has {word!r}; expected METRIC:NUMBER, like time_to_first_token:200"
                )
        if not limits:
            raise UsageError("--goodput is empty; expected METRIC:NUMBER, like request_latency:900")
        return cls(limits)

    def are_kept(self, record: RequestRecord) -> bool:
        """Say whether a request kept all of them; without a value of its own it did not."""
        for metric in REQUEST_METRICS:
            limit = self.of.get(metric.tag)
            if limit is None:
                continue
            values = metric.values(record)
            worst = (min if metric.larger_is_better else max)(values, default=None)
            if worst is None or (worst < limit if metric.larger_is_better else worst > limit):
                return False
        return True


def values_of(records: Sequence[RequestRecord], metric: RequestMetric) -> NDArray[np.float64]:
    """Return the values of a metric of all valid requests."""
    valid = (record for record in records if record.is_valid)
    return np.array([value for record in valid for value in metric.values(record)], np.float64)


def summary(values: NDArray[np.float64]) -> Summary:
    """Return the figures of some values as aiperf has them: of a population, interpolated."""
    percentiles = np.percentile(values, PERCENTILES)
    return {
        "avg": float(values.mean()),
        **{f"p{at}": float(value) for at, value in zip(PERCENTILES, percentiles, strict=True)},
        "min": float(values.min()),
        "max": float(values.max()),
        "std": float(values.std()),
        "count": len(values),
        "sum": float(values.sum()),
    }


def figures_of(
    runs: Sequence[Sequence[RequestRecord]], *, limits: GoodputLimits | None, streams: bool
) -> dict[str, Summary]:
    """Return every metric of some runs of one load, their requests pooled, by its tag.

    A run lasts from its first request to its last piece; several last their times together.
    """
    records = [record for run in runs for record in run]
    figures: dict[str, Summary] = {}
    for metric in REQUEST_METRICS:
        values = values_of(records, metric)
        if len(values) and (streams or not metric.is_of_stream):
            figures[metric.tag] = summary(values)
    return figures | {tag: {"avg": value} for tag, value in _of_runs(runs, limits).items()}


def _of_runs(
    runs: Sequence[Sequence[RequestRecord]], limits: GoodputLimits | None
) -> dict[str, float]:
    done = [record for run in runs for record in run if record.is_done]
    valid = [record for record in done if record.is_valid]
    totals: dict[str, float] = {
        "request_count": len(valid),
        "error_request_count": len(done) - len(valid),
        "completed_request_count": len(done),
    }
    good = 0 if limits is None else sum(map(limits.are_kept, valid))
    if done:
        totals["request_error_rate"] = 100 * (len(done) - len(valid)) / len(done)
    if done and limits is not None:
        # A share of all requests, as in aiperf: a server that refuses some must not look good by
        # the others, and one that refuses all has none.
        totals["good_request_fraction"] = good / len(done)
    seconds = sum(map(_duration_s, runs))
    if not seconds:
        return totals
    output = sum(record.output_tokens for record in valid)
    prompts = [record.input_tokens for record in valid if record.input_tokens is not None]
    totals |= {
        "benchmark_duration": seconds,
        "request_throughput": len(valid) / seconds,
        "output_token_throughput": output / seconds,
        "total_osl": output,
        "effective_concurrency": sum(record.latency_ns for record in valid) / _S / seconds,
    }
    if prompts:
        totals["total_isl"] = sum(prompts)
        totals["total_token_throughput"] = (output + sum(prompts)) / seconds
    if limits is not None:
        totals["good_request_count"] = good
        totals["goodput"] = good / seconds
    return totals


def _duration_s(run: Sequence[RequestRecord]) -> float:
    valid = [record for record in run if record.is_valid]
    if not valid:
        return 0.0
    first = min(record.start_ns for record in valid)
    return (max(record.pieces_ns[-1] for record in valid) - first) / _S
