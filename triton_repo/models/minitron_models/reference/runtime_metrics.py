"""Prometheus metrics under the names that TensorRT-LLM's model publishes, where they mean the same.

The KV cache has no pages: a block is a slot, which holds max_seq_len tokens of one sequence.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

import triton_python_backend_utils as pb_utils
from minitron_models.triton_types import Gauge, Histogram, MetricFamily

from minitron_trt.executor import Stats

_LENGTHS: Final = (10, 50, 100, 500, 1000)
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
    """The gauges and histograms of one model; `finished` is for any thread, `publish` for one."""

    def __init__(self, args: Mapping[str, str], max_seq_len: int) -> None:
        self._labels = {"model": args["model_name"], "version": args["model_version"]}
        self._max_seq_len = max_seq_len
        # Triton deletes a family, and its metrics with it, when Python forgets it.
        self._families: list[MetricFamily] = []
        self._gauges: dict[tuple[str, str], Gauge] = {}
        self._values: dict[tuple[str, str], float] = {}
        for name, description, label, kinds in _GAUGES:
            family = self._family(name, description, pb_utils.MetricFamily.GAUGE)
            for kind in kinds:
                self._gauges[label, kind] = family.Metric(labels={**self._labels, label: kind})
        self._inputs = self._histogram("nv_llm_input_token_len", "input")
        self._outputs = self._histogram("nv_llm_output_token_len", "output")
        self._lengths: deque[tuple[int, int]] = deque()

    def finished(self, input_tokens: int, output_tokens: int) -> None:
        """Count a request that has ended, at the next publication."""
        self._lengths.append((input_tokens, output_tokens))

    def publish(self, stats: Stats) -> None:
        """Send what changed to the server process."""
        values = _values(stats, self._max_seq_len)
        if values.items() <= self._values.items() and not self._lengths:
            return
        values["general_type", "timestamp"] = time.time_ns() // 1000
        for key, value in values.items():
            if self._values.get(key) != value:
                self._gauges[key].set(value)
        self._values = values
        while self._lengths:
            input_tokens, output_tokens = self._lengths.popleft()
            self._inputs.observe(input_tokens)
            self._outputs.observe(output_tokens)

    def _family(self, name: str, description: str, kind: Any) -> MetricFamily:
        family: MetricFamily = pb_utils.MetricFamily(name=name, description=description, kind=kind)
        self._families.append(family)
        return family

    def _histogram(self, name: str, side: str) -> Histogram:
        description = f"Histogram of {side} token lengths in number of tokens"
        family = self._family(name, description, pb_utils.MetricFamily.HISTOGRAM)
        histogram: Histogram = family.Metric(labels=self._labels, buckets=list(_LENGTHS))
        return histogram


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
