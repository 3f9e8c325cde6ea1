"""The Grafana dashboard, for every runtime: they publish the same Prometheus names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from minitron_trt.deploy.metric_names import (
    BLOCKS,
    ERRORS,
    FIRST_TOKEN,
    REQUESTS,
    SUCCESSES,
    TOKEN_TIME,
)

_WIDTH, _HEIGHT, _COLUMNS = 8, 8, 3
_OPTIONS: Final = {
    "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
    "tooltip": {"mode": "multi", "sort": "desc"},
}
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_OF_SERVER: Final = 'instance=~"$instance"'
_OF_MODEL: Final = f'{_OF_SERVER},model="$model"'


@dataclass(frozen=True, slots=True)
class Panel:
    """A graph: legend → PromQL, in Grafana's unit."""

    title: str
    unit: str
    queries: dict[str, str]
    note: str = ""


def _kinds(metric: str, label: str, *kinds: str) -> dict[str, str]:
    return {kind: f'sum({metric}{{{_OF_MODEL},{label}="{kind}"}})' for kind in kinds}


def _mean_us(metric: str) -> str:
    """Return the mean of a Triton counter of microseconds per request, for every model."""
    spent = f"sum by (model) (rate({metric}{{{_OF_SERVER}}}[$__rate_interval]))"
    count = f"sum by (model) (rate(nv_inference_request_success{{{_OF_SERVER}}}[$__rate_interval]))"
    return f"{spent} / {count}"


def _quantiles(metric: str) -> dict[str, str]:
    rates = f"sum by (le) (rate({metric}_bucket{{{_OF_MODEL}}}[$__rate_interval]))"
    return {f"p{share}": f"histogram_quantile(0.{share}, {rates})" for share in (50, 99)}


def _first_responses() -> dict[str, str]:
    """Return the quantiles of Triton's own histogram, for every model."""
    bucket = f"nv_inference_first_response_histogram_ms_bucket{{{_OF_SERVER}}}"
    rates = f"sum by (le, model) (rate({bucket}[$__rate_interval]))"
    return {
        f"{{{{model}}}} p{share}": f"histogram_quantile(0.{share}, {rates})" for share in (50, 99)
    }


def _error_ratio() -> dict[str, str]:
    """Return the share of tensorrt_llm's answers that are errors, by reason."""

    def rate(metric: str, by: str = "") -> str:
        return f"sum{by} (rate({metric}{{{_OF_MODEL}}}[$__rate_interval]))"

    failed, ended = ERRORS, SUCCESSES
    return {
        "{{reason}}": f"{rate(failed, ' by (reason)')} / ignoring (reason) group_left () "
        f"({rate(failed)} + {rate(ended)})"
    }


def _rate(metric: str, by: str = "model") -> str:
    return f"sum by ({by}) (rate({metric}{{{_OF_SERVER}}}[$__rate_interval]))"


_BATCHER = "nv_trt_llm_inflight_batcher_metrics"

ROWS: Final[dict[str, tuple[Panel, ...]]] = {
    "What clients see": (
        Panel(
            "Time to first token",
            "s",
            _quantiles(FIRST_TOKEN),
            "In tensorrt_llm, its queue included; runtimes reference and llmapi.",
        ),
        Panel(
            "Inter-token latency",
            "s",
            _quantiles(TOKEN_TIME),
            "A sequence's mean time between tokens; runtimes reference and llmapi.",
        ),
        Panel(
            "Errors",
            "percentunit",
            _error_ratio(),
            "Share of what tensorrt_llm answers; runtimes reference and llmapi.",
        ),
    ),
    "Tokens": (
        Panel("Prompt length", "short", _quantiles("nv_llm_input_token_len")),
        Panel("Answer length", "short", _quantiles("nv_llm_output_token_len")),
        Panel(
            "Tokens per second",
            "short",
            {
                "out": f"sum(rate(nv_llm_output_token_len_sum{{{_OF_MODEL}}}[$__rate_interval]))",
                "in": f"sum(rate(nv_llm_input_token_len_sum{{{_OF_MODEL}}}[$__rate_interval]))",
            },
            "Counted when a request ends.",
        ),
    ),
    "Requests": (
        Panel(
            "In flight",
            "short",
            _kinds(REQUESTS, "request_type", "active", "scheduled", "max"),
            "At max, further requests wait.",
        ),
        Panel("Waiting", "short", _kinds(REQUESTS, "request_type", "waiting", "context")),
        Panel(
            "Answered and failed",
            "reqps",
            {
                "{{model}} answered": _rate("nv_inference_request_success"),
                "{{model}} failed": _rate("nv_inference_request_failure"),
            },
            "As Triton counts: an error of a decoupled model is an answer, one of an ensemble two.",
        ),
    ),
    "Time": (
        Panel(
            "First response",
            "ms",
            _first_responses(),
            "Of decoupled models, whatever the runtime; Triton 24.11 and later.",
        ),
        Panel("Whole request", "s", _quantiles("trtllm_e2e_request_latency_seconds")),
        Panel(
            "Queue",
            "µs",
            {"{{model}}": _mean_us("nv_inference_queue_duration_us")},
            "Of Triton's own queues; what tensorrt_llm holds back is under Waiting.",
        ),
    ),
    "KV cache and batch": (
        Panel(
            "KV cache in use",
            "percentunit",
            {
                "used": "{used} / {max}".format(
                    **_kinds(BLOCKS, "kv_cache_block_type", "used", "max")
                )
            },
            "Near 1, requests are paused or wait.",
        ),
        Panel(
            "KV cache blocks",
            "short",
            _kinds(BLOCKS, "kv_cache_block_type", "used", "free", "reused", "max"),
        ),
        Panel(
            "Batch",
            "short",
            _kinds(
                _BATCHER,
                "inflight_batcher_specific_metric",
                *("total_context_tokens", "generation_requests", "paused_requests"),
            ),
        ),
        Panel(
            "Iterations",
            "ops",
            {
                "iterations": (
                    "sum(rate(nv_trt_llm_general_metrics{"
                    f'{_OF_MODEL},general_type="iteration_counter"'
                    "}[$__rate_interval]))"
                ),
            },
        ),
    ),
    "Machine": (
        Panel(
            "TensorRT-LLM memory",
            "bytes",
            _kinds("nv_trt_llm_runtime_memory_metrics", "memory_type", "gpu", "cpu", "pinned"),
        ),
        Panel(
            "GPU memory",
            "bytes",
            {
                "{{gpu_uuid}}": f"nv_gpu_memory_used_bytes{{{_OF_SERVER}}}",
            },
        ),
        Panel(
            "GPU utilization",
            "percentunit",
            {
                "{{gpu_uuid}}": f"nv_gpu_utilization{{{_OF_SERVER}}}",
            },
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    """Return the dashboard in Grafana's JSON model."""
    return {
        "title": "minitron-trt on Triton",
        "uid": "minitron-trt",
        "tags": ["triton", "tensorrt-llm"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": list(_variables())},
        "panels": list(_panels()),
    }


def _variables() -> Iterator[dict[str, Any]]:
    yield {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
    }
    for name, label, metric in (
        ("instance", "Server", "nv_inference_request_success"),
        ("model", "Model", REQUESTS),
    ):
        yield {
            "name": name,
            "label": label,
            "type": "query",
            "datasource": _SOURCE,
            "query": {"query": f"label_values({metric}, {name})", "refId": name},
            # Ask for the values anew when the time range changes: servers come and go.
            "refresh": 2,
            **({"includeAll": True, "allValue": ".*"} if name == "instance" else {}),
        }


def _panels() -> Iterator[dict[str, Any]]:
    top, number = 0, 1
    for title, panels in ROWS.items():
        grid = {"x": 0, "y": top, "w": _WIDTH * _COLUMNS, "h": 1}
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "gridPos": grid,
            "collapsed": False,
            "panels": [],
        }
        for index, panel in enumerate(panels):
            number += 1
            line, column = divmod(index, _COLUMNS)
            y = top + 1 + _HEIGHT * line
            grid = {"x": _WIDTH * column, "y": y, "w": _WIDTH, "h": _HEIGHT}
            yield {
                "id": number,
                "type": "timeseries",
                "title": panel.title,
                "description": panel.note,
                "datasource": _SOURCE,
                "gridPos": grid,
                "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
                "options": _OPTIONS,
                "targets": [
                    {"refId": chr(ord("A") + i), "expr": query, "legendFormat": legend}
                    for i, (legend, query) in enumerate(panel.queries.items())
                ],
            }
        top, number = y + _HEIGHT, number + 1
