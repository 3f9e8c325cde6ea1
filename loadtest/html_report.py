"""A result as one page of HTML, with its picture and tables, that loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from minitron_trt.html_page import folded, page, table
from minitron_trt.loadtest.load_test import HEADERS, UNITS, LoadResult
from minitron_trt.loadtest.metrics import REQUEST_METRICS, RUN_METRICS
from minitron_trt.loadtest.result_tables import SHOWN, figure_texts, overhead_text
from minitron_trt.tables import number_text


def html_report(
    results: Sequence[LoadResult], *, settings: Mapping[str, Any], chart: str | None
) -> str:
    """Return the page; `chart` is an SVG element."""
    rows = [[name, str(value)] for name, value in settings.items() if value not in (None, "", {})]
    parts = [folded("Settings", table(None, rows, texts=2))]
    if chart is not None:
        parts.append(chart)
    for result in results:
        parts += _load(result)
    parts.append(f"<p>{escape(overhead_text(results))}.</p>")
    return page(
        f"Load test of {settings['model']} at {settings['url']}",
        parts,
        note="Figures are named and defined as in NVIDIA's aiperf; ± is half of the 95 % "
        "confidence interval over the runs.",
    )


def _load(result: LoadResult) -> list[str]:
    texts = figure_texts(result)
    each = [
        [HEADERS[metric.tag], UNITS[metric.tag], *(texts[metric.tag, name] for name in SHOWN)]
        for metric in REQUEST_METRICS
        if (metric.tag, "avg") in texts
    ]
    whole = [
        [HEADERS[tag], texts[tag, "avg"], UNITS[tag]]
        for tag in RUN_METRICS
        if (tag, "avg") in texts
    ]
    parts = [f"<h2>{escape(result.pattern.label)}</h2>"]
    if not result.is_complete:
        parts.append("<p>Interrupted: these are the requests that were done by then.</p>")
    parts += [table(["", "unit", *SHOWN], each), table(["of the whole", "", ""], whole)]
    if errors := result.errors():
        rows = [[kind, words, str(count)] for (kind, words), count in errors.items()]
        parts.append(table(["error", "", "requests"], rows, texts=2))
    if result.series:
        parts.append(_series(result))
    return parts


def _series(result: LoadResult) -> str:
    rows = [
        [
            series.name,
            ", ".join(f"{name}={value}" for name, value in series.labels.items()),
            *(
                "" if value is None else number_text(value)
                for value in (series.growth, series.mean, series.largest)
            ),
        ]
        for series in result.series
    ]
    head = ["the server's own metrics", "", "grew by", "mean", "largest"]
    return folded(f"Metrics of the server ({len(rows)})", table(head, rows, texts=2))
