"""Prometheus metrics of what clients wait for, of any runtime that sees its requests.

The times have the names and buckets of TensorRT-LLM's own server (`trtllm-serve`), with finer ones
for small models; the lengths have those of TensorRT-LLM's model for Triton.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import triton_python_backend_utils as pb_utils
from minitron_models.triton_types import Counter, Histogram, MetricFamily

_LENGTHS: Final = (10, 50, 100, 500, 1000)
_FIRST_TOKEN_S: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)
_PER_TOKEN_S: Final = (
    *(0.0005, 0.001, 0.0025, 0.005),
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80),
)
_REQUEST_S: Final = (
    *(0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5),
    *(5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680),
)
FINISH_REASONS: Final = ("stop", "length", "timeout", "cancelled")
_ERRORS: Final = ("invalid_arg", "unsupported", "unavailable", "internal")
"""Triton's names of the codes that the runtimes send, in lower case."""


class RequestMetrics:
    """The histograms and counters of one model's requests.

    Any thread may tell what happened. It is published later, since each value costs a message to
    the server and back; the threads that publish take turns.
    """

    def __init__(self, args: Mapping[str, str]) -> None:
        self._labels = {"model": args["model_name"], "version": args["model_version"]}
        # Triton deletes a family, and its metrics with it, when Python forgets it.
        self._families: list[MetricFamily] = []
        side = "Histogram of {} token lengths in number of tokens"
        self._input_tokens = self._histogram(
            "nv_llm_input_token_len", side.format("input"), _LENGTHS
        )
        self._output_tokens = self._histogram(
            "nv_llm_output_token_len", side.format("output"), _LENGTHS
        )
        self._first_token = self._histogram(
            "trtllm_time_to_first_token_seconds",
            "Time from a request's arrival to its first token",
            _FIRST_TOKEN_S,
        )
        self._per_token = self._histogram(
            "trtllm_time_per_output_token_seconds",
            "Inter-token latency: a sequence's mean time between tokens",
            _PER_TOKEN_S,
        )
        self._request = self._histogram(
            "trtllm_e2e_request_latency_seconds",
            "Time from a request's arrival to its last token",
            _REQUEST_S,
        )
        self._ended = self._counters(
            "trtllm_request_success_total",
            "Sequences by why they ended",
            "finished_reason",
            FINISH_REASONS,
        )
        self._failed = self._counters(
            "trtllm_request_error_total",
            "Requests that got an error, by its code",
            "reason",
            _ERRORS,
        )
        # Triton's stub defines the codes after it has imported a model.
        self._codes = {getattr(pb_utils.TritonError, name.upper()): name for name in _ERRORS}
        # Appending to a deque is one step of CPython's, so that noting takes no lock.
        self._publishing = threading.Lock()
        self._news: deque[tuple[Callable[[float], None], float]] = deque()

    def first_token(self, seconds: float) -> None:
        """Note when a request has its first token, from its arrival on."""
        self._news.append((self._first_token.observe, seconds))

    def sequence_ended(self, reason: str, tokens: int, seconds: float) -> None:
        """Note that a sequence has ended; its first and last token are `seconds` apart."""
        self._news.append((self._ended[reason].increment, 1))
        if tokens > 1:
            self._news.append((self._per_token.observe, seconds / (tokens - 1)))

    def request_ended(self, *, input_tokens: int, output_tokens: int, seconds: float) -> None:
        """Note that a request has ended, all its sequences included."""
        self._news.append((self._input_tokens.observe, input_tokens))
        self._news.append((self._output_tokens.observe, output_tokens))
        self._news.append((self._request.observe, seconds))

    def failed(self, code: int) -> None:
        """Note that a request gets an error of one of Triton's codes."""
        self._news.append((self._failed[self._codes[code]].increment, 1))

    def publish(self) -> None:
        """Send what was noted to the server process."""
        # Triton's stub shares one message among the calls of a metric.
        with self._publishing:
            while self._news:
                publish, value = self._news.popleft()
                publish(value)

    def _family(self, name: str, description: str, kind: Any) -> MetricFamily:
        family: MetricFamily = pb_utils.MetricFamily(name=name, description=description, kind=kind)
        self._families.append(family)
        return family

    def _histogram(self, name: str, description: str, buckets: Sequence[float]) -> Histogram:
        family = self._family(name, description, pb_utils.MetricFamily.HISTOGRAM)
        histogram: Histogram = family.Metric(labels=self._labels, buckets=list(buckets))
        return histogram

    def _counters(
        self, name: str, description: str, label: str, values: Iterable[str]
    ) -> dict[str, Counter]:
        """Return a counter for each value of a label; all are there from the start, as 0."""
        family = self._family(name, description, pb_utils.MetricFamily.COUNTER)
        return {value: family.Metric(labels={**self._labels, label: value}) for value in values}
