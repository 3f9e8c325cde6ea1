"""A result in the files of aiperf: `profile_export_aiperf.json` and `profile_export.jsonl`.

Names, units and definitions are aiperf's (0.13, schema 1.4); what it has no place for is below
`minitron_trt`. What reads aiperf's files reads these.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from minitron_trt.console import PROGRAM
from minitron_trt.loadtest.load_test import UNITS, LoadResult, MeasuredRun
from minitron_trt.loadtest.metrics import REQUEST_METRICS, Summary
from minitron_trt.loadtest.request_record import RequestRecord
from minitron_trt.version import __version__

AIPERF_SCHEMA: Final = "1.4"
SUMMARY_NAME: Final = "profile_export_aiperf.json"
REQUESTS_NAME: Final = "profile_export.jsonl"
OWN_KEY: Final = "minitron_trt"
_NS: Final = 1e9


def summary_record(result: LoadResult, *, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a load's result as aiperf's object, its runs pooled."""
    begin, end = _span(result)
    figures = result.figures
    tokens = figures.get("total_osl", {}).get("avg", 0.0)
    return {
        "schema_version": AIPERF_SCHEMA,
        "benchmark_id": uuid.uuid4().hex[:12],
        **_metrics(figures),
        "was_cancelled": not result.is_complete,
        "is_complete": result.is_complete,
        "error_summary": [
            {"error_details": {"type": kind, "message": words}, "count": count}
            for (kind, words), count in result.errors().items()
        ],
        "start_time": begin,
        "end_time": end,
        OWN_KEY: {
            "version": __version__,
            "load": result.pattern.label,
            "settings": settings,
            "runs": [_metrics(run) for run in result.run_figures],
            # Keys and figures as in aiperf's aggregate over several runs.
            "confidence": {
                f"{tag}_{name}": value.as_record(UNITS[tag])
                for (tag, name), value in result.intervals.items()
            },
            "client_overhead": result.overhead.as_record(tokens),
            "server_metrics": [series.as_record() for series in result.series],
        },
    }


def _metrics(figures: Mapping[str, Summary]) -> dict[str, Any]:
    return {tag: {"unit": UNITS[tag], **values} for tag, values in figures.items()}


def _span(result: LoadResult) -> tuple[str, str]:
    """Return when a load began and ended, on the clock of the wall."""
    first, last = result.runs[0], result.runs[-1]
    end_ns = last.run.end_ns or last.run.begin_ns
    moments = (first.epoch_ns + first.run.begin_ns, last.epoch_ns + end_ns)
    begin, end = (datetime.fromtimestamp(at / _NS).isoformat() for at in moments)
    return begin, end


def request_lines(result: LoadResult) -> Iterator[str]:
    """Yield a JSON line for each request, as aiperf has them."""
    for number, run in enumerate(result.runs):
        for record in run.records:
            yield json.dumps(_request(record, run, number, streams=result.streams)) + "\n"


def _request(
    record: RequestRecord, run: MeasuredRun, number: int, *, streams: bool
) -> dict[str, Any]:
    line: dict[str, Any] = {
        "metadata": {
            "session_num": record.index,
            "credit_issued_ns": run.epoch_ns + record.due_ns,
            "request_start_ns": run.epoch_ns + record.start_ns,
            "request_end_ns": run.epoch_ns + record.end_ns,
            # In aiperf these are two of several processes; here one program sends and reads.
            "worker_id": PROGRAM,
            "record_processor_id": PROGRAM,
            "benchmark_phase": "profiling",
            "run": number,
            "was_cancelled": False,
        },
        "metrics": {},
    }
    if record.error is not None:
        line["error"] = {"type": type(record.error).__name__, "message": str(record.error)}
        return line
    for metric in REQUEST_METRICS:
        values = metric.values(record)
        if values and (streams or not metric.is_of_stream):
            value = list(values) if metric.has_several else values[0]
            line["metrics"][metric.tag] = {"value": value, "unit": metric.unit}
    return line


def write_files(result: LoadResult, record: Mapping[str, Any], folder: Path) -> None:
    """Write both files of a load, whose `record` the first one is, into a folder that is there."""
    (folder / SUMMARY_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    with (folder / REQUESTS_NAME).open("w", encoding="utf-8") as file:
        file.writelines(request_lines(result))
