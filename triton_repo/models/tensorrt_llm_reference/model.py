"""Triton model `tensorrt_llm`, reference runtime: the executor over a checkpoint beside it.

Same tensors as TensorRT-LLM's own model; needs minitron-trt[reference] in Triton's Python.
"""

from __future__ import annotations

import functools
import itertools
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from minitron_models.config_parameters import flag, parameter
from minitron_models.reference.request_responses import RequestResponses
from minitron_models.reference.running_requests import RunningRequest, RunningRequests
from minitron_models.reference.runtime_call import (
    RuntimeCall,
    RuntimeOffer,
    read_runtime_call,
    scalar,
    split_rows,
)
from minitron_models.reference.runtime_metrics import RuntimeMetrics
from minitron_models.request_metrics import RequestMetrics
from minitron_models.stream_readers import StreamReaders
from minitron_models.triton_io import CANCEL_CHECK_S, Sender
from minitron_models.triton_types import TritonRequest

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.errors import BadInputError, RefusedError, UnsupportedError
from minitron_trt.executor import Executor
from minitron_trt.executor.reference import ReferenceModel
from minitron_trt.executor.scheduler import MAX_TOKENS_PER_STEP

# A request has its slot by then, so the first figures after a rest are right.
_ADMISSION_S: Final = 0.002


class TritonPythonModel:
    """Called by Triton's Python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the checkpoint and start the executor."""
        model = _load(args)
        self._offer = RuntimeOffer(
            vocab=model.vocab,
            max_seq_len=model.max_seq_len,
            decoupled=pb_utils.using_decoupled_model_transaction_policy(
                json.loads(args["model_config"])
            ),
            exclude_input=flag(args, "exclude_input_in_output", False),
        )
        self._stream_interval = int(parameter(args, "stream_interval", "1"))
        self._executor = Executor(
            model,
            max_tokens_per_step=max(model.slots, _tokens_per_step(args)),
            max_queue_size=int(parameter(args, "max_queue_size")),
        )
        self._numbers = itertools.count()
        self._running = RunningRequests()
        self._readers = StreamReaders()
        self._request_metrics = RequestMetrics(args)
        self._metrics = RuntimeMetrics(args, model.max_seq_len)
        self._metrics.publish(self._executor.stats())
        self._cancel_period_s = int(parameter(args, "cancellation_check_period_ms", "20")) / 1e3
        self._stats_period_s = int(parameter(args, "stats_check_period_ms", "100")) / 1e3
        self._closing = threading.Event()
        self._watchers = [
            threading.Thread(target=watch, name=f"minitron{watch.__name__}", daemon=True)
            for watch in (self._watch_metrics, self._watch_readers)
        ]
        self._executor.start()
        for watcher in self._watchers:
            watcher.start()

    def execute(self, requests: list[TritonRequest]) -> None:
        """Hand each request to the executor, which answers from its own thread."""
        for request in requests:
            sender = self._readers.sender(request)
            try:
                self._take(request, sender)
            except Exception as error:
                message, code = _refusal(error)
                self._request_metrics.failed(code)
                # Perhaps nothing runs, and who watches that sleeps.
                self._request_metrics.publish()
                sender.fail(message, code)

    def finalize(self) -> None:
        """Stop the executor."""
        self._closing.set()
        self._running.wake()
        self._executor.close()
        for watcher in self._watchers:
            watcher.join()
        # Deleting them takes the server, which is gone by the time the interpreter ends.
        del self._metrics, self._request_metrics

    def _take(self, request: TritonRequest, sender: Sender) -> None:
        arrays = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        stream_ids = arrays.get("stream_id", np.empty(0, np.uint64)).reshape(-1).tolist()
        if scalar(arrays, "stop", False):
            self._stop(_names(request.request_id(), *stream_ids), sender)
            return
        rows = split_rows(arrays)
        if len(rows) > 1 and not self._offer.decoupled:
            raise BadInputError(
                f"input_lengths has {len(rows)} rows; more than one needs a model with "
                "decoupled responses"
            )
        timeout_us = request.timeout()
        calls = [
            read_runtime_call(row, str(next(self._numbers)), timeout_us, self._offer)
            for row in rows
        ]
        # All or none: a batch of which one row is refused runs none of its rows.
        for call in calls:
            self._executor.check(call.request)
        self._submit(calls, stream_ids or [None] * len(calls), request.request_id(), sender)

    def _stop(self, names: frozenset[str | int], sender: Sender) -> None:
        if not names:
            raise BadInputError("stop needs the request id, or stream_id, of the request to stop")
        self._cancel(names)
        # A model that is not decoupled owes exactly one response.
        if self._offer.decoupled:
            sender.close()
        else:
            sender.send({}, last=True)

    def _cancel(self, names: frozenset[str | int]) -> None:
        for request_id in self._running.named(names):
            self._executor.cancel(request_id)

    def _submit(
        self,
        calls: Sequence[RuntimeCall],
        stream_ids: Sequence[int | None],
        client_id: str,
        sender: Sender,
    ) -> None:
        request_ids = tuple(call.request.request_id for call in calls)
        done = functools.partial(self._running.remove, request_ids)
        responses = RequestResponses(
            sender,
            calls,
            stream_ids=stream_ids,
            stream_interval=self._stream_interval,
            check_period_s=self._cancel_period_s,
            metrics=self._request_metrics,
            done=done,
        )
        for request_id, stream_id in zip(request_ids, stream_ids, strict=True):
            self._running.add(RunningRequest(_names(client_id, stream_id), request_id))
        try:
            for row, call in enumerate(calls):
                on_event = functools.partial(responses.on_event, row)
                self._executor.submit(call.request, on_event, responses.check_over)
        except BaseException:
            responses.close()
            done()
            raise

    def _watch_readers(self) -> None:
        """Cancel the streams of the ensemble that nobody reads any more."""
        while not self._closing.wait(CANCEL_CHECK_S):
            if abandoned := self._readers.find_abandoned():
                self._cancel(frozenset(abandoned))

    def _watch_metrics(self) -> None:
        """Publish metrics, as long as there is something to see."""
        while self._running.wait(self._closing):
            self._closing.wait(_ADMISSION_S)
            while self._running and not self._closing.is_set():
                self._publish()
                self._closing.wait(self._stats_period_s)
            self._publish()

    def _publish(self) -> None:
        self._metrics.publish(self._executor.stats())
        self._request_metrics.publish()


def _names(client_id: str, *stream_ids: int | None) -> frozenset[str | int]:
    """Return what requests can be called by: the client's id and their streams', where given."""
    return frozenset(name for name in (client_id, *stream_ids) if name not in ("", None))


def _refusal(error: Exception) -> tuple[str, int]:
    """Return what is wrong with a request, and Triton's code for it."""
    codes = pb_utils.TritonError
    for kind, code in (
        (BadInputError, codes.INVALID_ARG),
        (UnsupportedError, codes.UNSUPPORTED),
        (RefusedError, codes.UNAVAILABLE),
    ):
        if isinstance(error, kind):
            return str(error), code
    return f"{type(error).__name__}: {error}", codes.INTERNAL


def _load(args: Mapping[str, str]) -> ReferenceModel:
    folder = Path(args["model_repository"], args["model_version"])
    return ReferenceModel(
        Checkpoint.open(folder / parameter(args, "gpt_model_path")),
        slots=int(parameter(args, "max_batch_size")),
        max_seq_len=int(parameter(args, "max_seq_len")),
        device=_device(parameter(args, "gpu_device_ids", "")),
    )


def _device(gpu: str) -> str:
    """Return where torch computes: a GPU that is named by its id, else the CPU."""
    if not gpu:
        return "cpu"
    there = torch.cuda.device_count()
    if not gpu.isdecimal() or int(gpu) >= there:
        raise UnsupportedError(
            f"gpu_device_ids is {gpu!r}; expected one of the {there} NVIDIA GPUs that torch sees "
            "here, by its number from 0, or nothing for the CPU"
        )
    return f"cuda:{gpu}"


def _tokens_per_step(args: Mapping[str, str]) -> int:
    return int(parameter(args, "max_num_tokens", str(MAX_TOKENS_PER_STEP)))
