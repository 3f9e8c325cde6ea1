"""Triton model `tensorrt_llm_bls`: text in, text out, over tensorrt_llm in one hop.

It speaks the ensemble's tensors, does pre- and postprocessing itself, and passes a client's
cancellation on at once.
"""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from minitron_requests import (
    error_response,
    finish,
    generate,
    scalar,
    stop,
    tensor,
    text_response,
)
from minitron_text import CONTEXT_TOKENS, TextDecoder, TextEncoder, parameter

PASSED_ON = {
    "top_k": "runtime_top_k",
    "top_p": "runtime_top_p",
    "temperature": "temperature",
    "seed": "seed",
}


class TritonPythonModel:
    """Called by Triton's Python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the tokenizer; a thread waits for each request in flight."""
        self._encoder = TextEncoder(args)
        self._decoder = TextDecoder(args)
        self._threads = ThreadPoolExecutor(int(parameter(args, "max_requests")))

    def execute(self, requests: list[Any]) -> None:
        """Start each request; its thread answers."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._threads.submit(self._relay, self._inputs(request), sender)
            except ValueError as error:
                finish(sender, error_response(str(error), pb_utils.TritonError.INVALID_ARG))

    def finalize(self) -> None:
        """Let the requests in flight end."""
        self._threads.shutdown()

    def _inputs(self, request: Any) -> dict[str, Any]:
        query = tensor(request, "text_input")
        prompt = self._encoder.prompt(
            np.empty(0) if query is None else query,
            tensor(request, "stop_words"),
            tensor(request, "bad_words"),
            tensor(request, "end_id"),
        )
        # Copies: the request's memory is gone when its thread runs.
        given = {
            target: value.copy()
            for name, target in {"max_tokens": "request_output_len", **PASSED_ON}.items()
            if (value := tensor(request, name)) is not None
        }
        return {
            **given,
            "input_ids": prompt.ids,
            "input_lengths": np.array([[prompt.ids.size]], np.int32),
            "end_id": np.array([[prompt.end_id]], np.int32),
            "stop_words_list": prompt.stop_words,
            "bad_words_list": prompt.bad_words,
            "streaming": np.array([[scalar(request, "stream", False)]], np.bool_),
        }

    def _relay(self, inputs: dict[str, Any], sender: Any) -> None:
        try:
            self._generate(inputs, sender)
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            finish(sender, error_response(message, pb_utils.TritonError.INTERNAL))

    def _generate(self, inputs: dict[str, Any], sender: Any) -> None:
        # An id of our own, so that `stop` cannot meet another client's request.
        request_id = uuid.uuid4().hex
        outputs = ["output_ids", "sequence_length", "is_final"]
        context: list[int] = []
        stopped = False
        for answer in generate(request_id, outputs, **inputs):
            if answer.has_error():
                error = answer.error()
                finish(sender, error_response(error.message(), error.code()))
                return
            if not stopped and sender.is_cancelled():
                stopped = True
                stop(request_id)
            if stopped or not answer.output_tensors():
                continue
            ids, final = _ids(answer)
            sender.send(text_response("text_output", self._decoder.new_text(context, ids, final)))
            context = [*context, *ids][-CONTEXT_TOKENS:]
        finish(sender)


def _ids(answer: Any) -> tuple[list[int], bool]:
    tensors = {tensor.name(): tensor.as_numpy() for tensor in answer.output_tensors()}
    length = int(tensors["sequence_length"][0, 0])
    return tensors["output_ids"][0, 0, :length].tolist(), bool(tensors["is_final"].item())
