"""Results for a terminal: all figures of one load, a line for each of several, a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from minitron_trt.loadtest.load_test import HEADERS, UNITS, LoadResult
from minitron_trt.loadtest.metrics import REQUEST_METRICS, RUN_METRICS
from minitron_trt.loadtest.result_comparison import REQUESTS, Difference
from minitron_trt.tables import Column, fitting, number_text, output_width, table_lines

SHOWN: Final = ("avg", "min", "p50", "p90", "p99", "max", "std")
# What says least on a narrow terminal goes first.
_DROPS: Final = {"std": 5, "min": 4, "max": 3, "p90": 2}
# By importance: the last of them leaves a narrow terminal first.
_SWEEP: Final = (
    ("req/s", "request_throughput", "avg"),
    ("tokens/s", "output_token_throughput", "avg"),
    ("TTFT p50", "time_to_first_token", "p50"),
    ("TTFT p99", "time_to_first_token", "p99"),
    ("ITL p50", "inter_token_latency", "p50"),
    ("ITL p99", "inter_token_latency", "p99"),
    ("latency p50", "request_latency", "p50"),
    ("latency p99", "request_latency", "p99"),
    ("goodput", "goodput", "avg"),
    ("errors", "error_request_count", "avg"),
)


def result_text(results: Sequence[LoadResult]) -> str:
    """Return what a user is shown of a test."""
    blocks = [_one(results[0])] if len(results) == 1 else [_sweep(results)]
    return "\n\n".join([*blocks, *_notes(results)])


def figure_texts(result: LoadResult) -> Mapping[tuple[str, str], str]:
    """Return each figure by tag and name, with its interval where there are several runs."""
    intervals = result.intervals
    texts = {}
    for tag, values in result.figures.items():
        for name, value in values.items():
            text = number_text(value)
            if (found := intervals.get((tag, name))) is not None:
                text += f" ±{number_text((found.ci_high - found.ci_low) / 2)}"
            texts[tag, name] = text
    return texts


def _one(result: LoadResult) -> str:
    texts = figure_texts(result)
    tags = [metric.tag for metric in REQUEST_METRICS if (metric.tag, "avg") in texts]
    columns = [
        Column(f"{result.pattern.label}", [HEADERS[tag] for tag in tags], left=True),
        Column("unit", [UNITS[tag] for tag in tags], left=True, drop=1),
        *(
            Column(name, [texts[tag, name] for tag in tags], drop=_DROPS.get(name, 0))
            for name in SHOWN
        ),
    ]
    totals = [tag for tag in RUN_METRICS if (tag, "avg") in texts]
    whole = [
        Column("of the whole", [HEADERS[tag] for tag in totals], left=True),
        Column("", [texts[tag, "avg"] for tag in totals]),
        Column("", [UNITS[tag] for tag in totals], left=True),
    ]
    return "\n".join([*_fitted(columns), "", *table_lines(whole)])


def _sweep(results: Sequence[LoadResult]) -> str:
    texts = [figure_texts(result) for result in results]
    columns = [Column("load", [result.pattern.label for result in results], left=True)]
    for drop, (title, tag, name) in enumerate(_SWEEP):
        cells = [each.get((tag, name), "") for each in texts]
        if any(cells):
            columns.append(Column(title, cells, drop=drop))
    return "\n".join([*_fitted(columns), "times in ms"])


def _fitted(columns: Sequence[Column]) -> list[str]:
    kept, left_out = fitting(columns, output_width())
    lines = table_lines(kept)
    if left_out:
        names = ", ".join(column.title for column in left_out)
        lines.append(f"(a wider terminal, a pipe and --json show {names}, too)")
    return lines


def _notes(results: Sequence[LoadResult]) -> list[str]:
    notes = []
    for result in results:
        counts: dict[str, int] = {}
        words: dict[str, str] = {}
        for (kind, message), count in result.errors().items():
            counts[kind] = counts.get(kind, 0) + count
            words.setdefault(kind, message)
        notes += [
            f"{result.pattern.label}: {count} × {kind}: {words[kind]}"
            for kind, count in counts.items()
        ]
    runs = len(results[0].runs)
    if runs > 1:
        notes.append(f"± is half of the 95 % confidence interval over {runs} runs")
    notes.append(overhead_text(results))
    return notes


def overhead_text(results: Sequence[LoadResult]) -> str:
    """Return what the client itself took, and whether that is too much to be believed."""
    worst = max((result.overhead for result in results), key=lambda each: each.core_share)
    late_ms = max(result.overhead.late_ms for result in results)
    text = (
        f"the client took {100 * worst.core_share:.0f} % of a core; 99 of 100 times it woke up "
        f"within {number_text(late_ms)} ms of when it should"
    )
    if any(result.overhead.is_busy for result in results):
        text += (
            ": it was the bottleneck itself, and the server can do better; lower the load, or put "
            "it on from several clients"
        )
    elif any(result.overhead.is_late for result in results):
        text += (
            ": something else kept it waiting, so that times are longer than the server's; give "
            "it a core"
        )
    return text


def comparison_text(differences: Sequence[Difference]) -> str:
    """Return a comparison as a table."""
    loads = [each.load for each in differences]
    columns = [
        Column("load", loads, left=True, drop=3),
        Column("figure", [HEADERS[each.tag] for each in differences], left=True),
        Column("", [each.name for each in differences], left=True),
        Column("a", [number_text(each.a) for each in differences]),
        Column("b", [number_text(each.b) for each in differences]),
        Column("unit", [UNITS[each.tag] for each in differences], left=True, drop=2),
        Column("change", [_change(each) for each in differences]),
        Column("p", [_p_value(each) for each in differences], drop=1),
        Column("b is", [each.verdict for each in differences], left=True),
    ]
    if len(set(loads)) == 1:
        columns = columns[1:]
    notes = []
    if any(each.tested == REQUESTS for each in differences):
        notes.append(
            "tested on the requests of single runs: these two runs differ or not; whether the "
            "servers do, --repeats tells"
        )
    if any(each.tested is None for each in differences):
        notes.append("not tested: there is one run each; measure with --repeats 3 or more")
    return "\n".join([*_fitted(columns), *notes])


def _change(each: Difference) -> str:
    return "" if each.change is None else f"{100 * each.change:+.1f} %"


def _p_value(each: Difference) -> str:
    if each.p_value is None:
        return ""
    return "<0.001" if each.p_value < 0.001 else f"{each.p_value:.3f}"
