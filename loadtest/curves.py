"""Pictures of a load test: latency against load, or how the times of one load are spread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from minitron_trt.loadtest.load_test import LoadResult
from minitron_trt.loadtest.metrics import REQUEST_METRICS, values_of
from minitron_trt.tables import number_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLUE, _ORANGE, _GREY = "#4c72b0", "#dd8452", "#bbbbbb"
_TIMES: Final = (
    ("time_to_first_token", "time to first token, ms"),
    ("inter_token_latency", "inter-token latency, ms"),
    ("request_latency", "request latency, ms"),
)


def curves(results: Sequence[LoadResult]) -> Figure:
    """Return the figure: curves over several loads, distributions of a single one."""
    from matplotlib.figure import Figure

    measured = [result for result in results if result.figures.get("request_throughput")]
    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplots(2, 2).ravel()
    if len(measured) > 1:
        for each, (tag, label) in zip(axes, _TIMES, strict=False):
            _against_load(each, measured, tag, label)
        _throughput(axes[3], measured)
    elif measured:
        for each, (tag, label) in zip(axes, _TIMES, strict=False):
            _distribution(each, measured[0], tag, label)
        _over_time(axes[3], measured[0])
    for each in axes:
        each.grid(alpha=0.3)
    return figure


def _loads(results: Sequence[LoadResult]) -> list[float]:
    return [result.pattern.concurrency or 0 for result in results]


def _against_load(axes: Any, results: Sequence[LoadResult], tag: str, label: str) -> None:
    loads = _loads(results)
    for name, colour in (("p50", _BLUE), ("p99", _ORANGE)):
        points = [
            (load, figures[tag][name], result.intervals.get((tag, name)))
            for load, result in zip(loads, results, strict=True)
            if tag in (figures := result.figures)
        ]
        if not points:
            continue
        xs, ys, intervals = zip(*points, strict=True)
        around = [
            (y, y) if found is None else (found.ci_low, found.ci_high)
            for y, found in zip(ys, intervals, strict=True)
        ]
        # Of pooled requests a figure need not lie between those of the runs.
        errors = [(y - low, high - y) for y, (low, high) in zip(ys, around, strict=True)]
        axes.errorbar(
            xs,
            ys,
            yerr=np.clip(errors, 0, None).T,
            marker="o",
            color=colour,
            ecolor=_GREY,
            capsize=3,
            label=name,
        )
    axes.set(xlabel="concurrency", ylabel=label, ylim=(0, None))
    axes.set_xticks(loads, [f"{load:g}" for load in loads])
    axes.legend(frameon=False)


def _throughput(axes: Any, results: Sequence[LoadResult]) -> None:
    """Draw what operators choose by: all users' tokens over one user's speed."""
    # Whole answers have no time between tokens: then a user's speed is that of the request.
    points = [
        (
            figures["output_token_throughput_per_user"]["avg"]
            if "output_token_throughput_per_user" in figures
            else figures["e2e_output_token_throughput"]["avg"],
            figures["output_token_throughput"]["avg"],
        )
        for figures in (result.figures for result in results)
    ]
    xs, ys = zip(*points, strict=True)
    axes.plot(xs, ys, marker="o", color=_BLUE)
    for load, x, y in zip(_loads(results), xs, ys, strict=True):
        axes.annotate(f"{load:g}", (x, y), xytext=(6, 6), textcoords="offset points")
    axes.set(
        xlabel="tokens/s of one user",
        ylabel="tokens/s of all, beside each the concurrency",
        xlim=(0, 1.1 * max(xs)),
        ylim=(0, 1.1 * max(ys)),
    )


def _distribution(axes: Any, result: LoadResult, tag: str, title: str) -> None:
    metric = next(metric for metric in REQUEST_METRICS if metric.tag == tag)
    values = np.sort(values_of(result.records, metric))
    if len(values):
        axes.step(values, 100 * np.arange(1, len(values) + 1) / len(values), where="post")
        for share, colour in ((50, _BLUE), (99, _ORANGE)):
            at = float(np.percentile(values, share))
            axes.axvline(
                at, color=colour, linestyle="--", linewidth=1, label=f"p{share} {number_text(at)}"
            )
        axes.legend(frameon=False)
    axes.set(xlabel=title, ylabel="% of requests at most", xlim=(0, None), ylim=(0, 101))


def _over_time(axes: Any, result: LoadResult) -> None:
    """Draw when requests ended and what they took: what is warming up or filling up is seen."""
    for run in result.runs:
        valid = [record for record in run.records if record.is_valid]
        axes.plot(
            [(record.start_ns - run.run.begin_ns) / 1e9 for record in valid],
            [record.latency_ns / 1e6 for record in valid],
            "o",
            markersize=3,
            alpha=0.6,
        )
    axes.set(xlabel="sent, s after the start", ylabel="request latency, ms", ylim=(0, None))
