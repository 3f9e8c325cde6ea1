"""Triton model `tensorrt_llm`, reference runtime: the executor over a checkpoint beside it.

Same tensors as TensorRT-LLM's own model; needs minitron-trt[reference] in Triton's Python.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from minitron_requests import error_response, finish, response, scalar, tensor
from minitron_text import CONTEXT_TOKENS, parameter

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.errors import BadInputError, RefusedError
from minitron_trt.executor import Event, Executor, FinishReason, Request, Sampling
from minitron_trt.executor.reference import ReferenceModel

# Asking Triton costs a message to the server process.
CANCEL_CHECK_S = 0.02


class TritonPythonModel:
    """Called by Triton's Python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the checkpoint and start the executor."""
        folder = Path(args["model_repository"], args["model_version"])
        model = ReferenceModel(
            Checkpoint.open(folder / parameter(args, "gpt_model_path")),
            slots=int(parameter(args, "max_batch_size")),
            max_seq_len=int(parameter(args, "max_seq_len")),
        )
        self._executor = Executor(model, max_queue_size=int(parameter(args, "max_queue_size")))
        self._executor.start()
        self._numbers = itertools.count()
        self._metrics = _Metrics()
        self._metrics.gauge("max").set(model.slots)
        self._running = _Running(self._metrics.gauge("active"))

    def execute(self, requests: list[Any]) -> None:
        """Hand each request to the executor, which answers from its own thread."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._take(request, sender)
            except (BadInputError, ValueError) as error:
                finish(sender, error_response(str(error), pb_utils.TritonError.INVALID_ARG))
            except RefusedError as error:
                finish(sender, error_response(str(error), pb_utils.TritonError.UNAVAILABLE))

    def finalize(self) -> None:
        """Stop the executor."""
        self._executor.close()

    def _take(self, request: Any, sender: Any) -> None:
        request_id = request.request_id()
        if scalar(request, "stop", False):
            if not request_id:
                raise ValueError("stop needs the request id of the request to stop")
            self._running.cancel(request_id, self._executor)
            finish(sender)
            return
        number = str(next(self._numbers))
        asked = _request(number, request)
        stream = _Stream(
            sender,
            streaming=scalar(request, "streaming", False),
            done=lambda: self._running.remove(request_id, number),
        )
        self._running.add(request_id, number)
        try:
            self._executor.submit(asked, stream.on_event, stream.is_cancelled)
        except BaseException:
            stream.done()
            raise


class _Running:
    """The executor's numbers of the requests in flight, by the id that the client gave."""

    def __init__(self, gauge: Any) -> None:
        self._lock = threading.Lock()
        self._numbers: dict[str, set[str]] = {}
        self._gauge = gauge

    def add(self, request_id: str, number: str) -> None:
        """Remember a request that begins."""
        with self._lock:
            self._numbers.setdefault(request_id, set()).add(number)
            self._gauge.increment(1)

    def remove(self, request_id: str, number: str) -> None:
        """Forget a request that has ended."""
        with self._lock:
            left = self._numbers.get(request_id, set())
            left.discard(number)
            self._gauge.increment(-1)
            if not left:
                self._numbers.pop(request_id, None)

    def cancel(self, request_id: str, executor: Executor) -> None:
        """End every request that carries the client's id."""
        with self._lock:
            numbers = tuple(self._numbers.get(request_id, ()))
        for number in numbers:
            executor.cancel(number)


class _Metrics:
    """Prometheus gauges under the names that TensorRT-LLM's model publishes."""

    def __init__(self) -> None:
        # Triton deletes a family, and the gauges with it, when Python forgets it.
        self._family = pb_utils.MetricFamily(
            name="nv_trt_llm_request_metrics",
            description="TRT LLM request metrics",
            kind=pb_utils.MetricFamily.GAUGE,
        )

    def gauge(self, kind: str) -> Any:
        """Return the gauge of one request type."""
        labels = {"model": "tensorrt_llm", "version": "1", "request_type": kind}
        return self._family.Metric(labels=labels)


class _Stream:
    """One request's way back to Triton."""

    def __init__(self, sender: Any, streaming: bool, done: Callable[[], None]) -> None:
        self._sender = sender
        self._streaming = streaming
        self._ids: list[int] = []
        self._sent = 0
        self._checked = time.monotonic()
        self.done = done

    def is_cancelled(self) -> bool:
        """Return whether the client left, asked seldom."""
        now = time.monotonic()
        if now - self._checked < CANCEL_CHECK_S:
            return False
        self._checked = now
        return bool(self._sender.is_cancelled())

    def on_event(self, event: Event) -> None:
        """Send what is new; without streaming, everything at the end."""
        self._ids.extend(event.tokens)
        reason = event.finish_reason
        if reason is not None:
            self.done()
        if reason is FinishReason.CANCELLED:
            finish(self._sender)
        elif reason in (FinishReason.ERROR, FinishReason.TIMED_OUT):
            message = event.error or "the request ran out of time"
            finish(self._sender, error_response(message, pb_utils.TritonError.INTERNAL))
        elif reason is not None:
            finish(self._sender, self._response(final=True))
        elif self._streaming:
            self._sender.send(self._response(final=False))

    def _response(self, final: bool) -> Any:
        start, self._sent = self._sent, len(self._ids)
        new = self._ids[start:]
        return response(
            output_ids=np.array([[new]], np.int32),
            sequence_length=np.array([[len(new)]], np.int32),
            context_ids=np.array([self._ids[max(0, start - CONTEXT_TOKENS) : start]], np.int32),
            is_final=np.array([[final]], np.bool_),
        )


def _request(number: str, request: Any) -> Request:
    given = tensor(request, "input_ids")
    ids = np.empty(0, np.int32) if given is None else given.reshape(-1)
    length = scalar(request, "input_lengths", len(ids))
    if not 0 <= length <= len(ids):
        raise ValueError(f"input_lengths is {length} but input_ids holds {len(ids)} ids")
    end_id = scalar(request, "end_id", -1)
    return Request(
        request_id=number,
        prompt=tuple(ids[:length].tolist()),
        max_tokens=scalar(request, "request_output_len", 0),
        sampling=Sampling(
            temperature=scalar(request, "temperature"),
            top_k=scalar(request, "runtime_top_k"),
            top_p=scalar(request, "runtime_top_p"),
            seed=scalar(request, "seed"),
            end_ids=(end_id,) if end_id >= 0 else (),
            stop_words=_words(request, "stop_words_list"),
            bad_words=_words(request, "bad_words_list"),
        ),
    )


def _words(request: Any, name: str) -> tuple[tuple[int, ...], ...]:
    packed = tensor(request, name)
    if packed is None:
        return ()
    ids, ends = packed.reshape(2, -1).tolist()
    ends = [end for end in ends if end > 0]
    # The end of a word is the start of the next; the last end starts nothing.
    return tuple(tuple(ids[start:end]) for start, end in zip([0, *ends], ends, strict=False))
