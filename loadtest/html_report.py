"""A result as one page of HTML, with its picture and tables, that loads nothing from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from minitron_trt.loadtest.load_test import HEADERS, UNITS, LoadResult
from minitron_trt.loadtest.metrics import REQUEST_METRICS, RUN_METRICS
from minitron_trt.loadtest.result_tables import SHOWN, figure_texts, number_text, overhead_text
from minitron_trt.version import __version__

_STYLE: Final = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 20%, transparent); }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
div { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child, td.text { text-align: left; }
img { max-width: 100%; background: #fff; }
small { opacity: .75; }
"""


def html_report(
    results: Sequence[LoadResult],
    *,
    settings: Mapping[str, Any],
    png: bytes | None,
) -> str:
    """Return the page."""
    title = f"Load test of {settings['model']} at {settings['url']}"
    parts = [f"<h1>{escape(title)}</h1>", _settings(settings)]
    if png is not None:
        image = base64.b64encode(png).decode()
        parts.append(f'<img alt="Curves" src="data:image/png;base64,{image}">')
    for result in results:
        parts += _load(result)
    parts.append(f"<p>{escape(overhead_text(results))}.</p>")
    parts.append(
        "<p><small>Figures are named and defined as in NVIDIA's aiperf; ± is half of the 95 % "
        f"confidence interval over the runs. minitron-trt {escape(__version__)}</small></p>"
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}'
        '</title><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _settings(settings: Mapping[str, Any]) -> str:
    rows = [[name, str(value)] for name, value in settings.items() if value not in (None, "", {})]
    return f"<details><summary>Settings</summary>{_table(None, rows)}</details>"


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
    parts += [_table(["", "unit", *SHOWN], each), _table(["of the whole", "", ""], whole)]
    if errors := result.errors():
        rows = [[kind, words, str(count)] for (kind, words), count in errors.items()]
        parts.append(_table(["error", "", "requests"], rows))
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
    table = _table(["the server's own metrics", "", "grew by", "mean", "largest"], rows)
    return f"<details><summary>Metrics of the server ({len(rows)})</summary>{table}</details>"


def _table(head: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"

    body = "".join(line(cells, "td") for cells in rows)
    top = line(head, "th") if head else ""
    return f"<div><table>{top}{body}</table></div>"
