"""Prometheus metrics under the names that TensorRT-LLM's model publishes, where they mean the same.

The KV cache has no pages: a block is a slot, which holds max_seq_len tokens of one sequence.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

import triton_python_backend_utils as pb_utils
from minitron_models.triton_types import Gauge, MetricFamily

from minitron_trt.executor import Stats

# name, description, label, its values
_GAUGES: Final = (
    (
        "nv_trt_llm_request_metrics",
        "TRT LLM request metrics",
        "request_type",
        ("active", "max", "scheduled", "context", "waiting"),
    ),
    (
        "nv_trt_llm_kv_cache_block_metrics",
        "TRT LLM KV cache block metrics",
        "kv_cache_block_type",
        ("max", "free", "used", "tokens_per", "fraction"),
    ),
    (
        "nv_trt_llm_inflight_batcher_metrics",
        "TRT LLM inflight_batcher-specific metrics",
        "inflight_batcher_specific_metric",
        ("total_context_tokens", "generation_requests"),
    ),
    (
        "nv_trt_llm_general_metrics",
        "General TRT LLM metrics",
        "general_type",
        ("timestamp", "iteration_counter"),
    ),
)


class RuntimeMetrics:
    """The gauges of one model, for one thread."""

    def __init__(self, args: Mapping[str, str], max_seq_len: int) -> None:
        labels = {"model": args["model_name"], "version": args["model_version"]}
        self._max_seq_len = max_seq_len
        # Triton deletes a family, and its metrics with it, when Python forgets it.
        self._families: list[MetricFamily] = []
        self._gauges: dict[tuple[str, str], Gauge] = {}
        self._values: dict[tuple[str, str], float] = {}
        for name, description, label, kinds in _GAUGES:
            family: MetricFamily = pb_utils.MetricFamily(
                name=name, description=description, kind=pb_utils.MetricFamily.GAUGE
            )
            self._families.append(family)
            for kind in kinds:
                self._gauges[label, kind] = family.Metric(labels={**labels, label: kind})

    def publish(self, stats: Stats) -> None:
        """Send what changed to the server process."""
        values = _values(stats, self._max_seq_len)
        if values.items() <= self._values.items():
            return
        # Only beside other news, as it always changes; in microseconds, as TensorRT-LLM has it.
        values["general_type", "timestamp"] = time.time_ns() // 1000
        for key, value in values.items():
            if self._values.get(key) != value:
                self._gauges[key].set(value)
        self._values = values


def _values(stats: Stats, max_seq_len: int) -> dict[tuple[str, str], float]:
    requests = {
        "active": stats.active,
        "max": stats.slots,
        "scheduled": stats.generating + stats.prefilling,
        "context": stats.prefilling,
        "waiting": stats.waiting,
    }
    blocks = {
        "max": stats.slots,
        "free": stats.slots - stats.active,
        "used": stats.active,
        "tokens_per": max_seq_len,
        "fraction": stats.active / stats.slots,
    }
    batch = {
        "total_context_tokens": stats.prefill_tokens,
        "generation_requests": stats.generating,
    }
    return {
        **{("request_type", kind): value for kind, value in requests.items()},
        **{("kv_cache_block_type", kind): value for kind, value in blocks.items()},
        **{("inflight_batcher_specific_metric", kind): value for kind, value in batch.items()},
        ("general_type", "iteration_counter"): stats.steps,
    }
