"""Triton model `tensorrt_llm_bls`: text in, text out, over tensorrt_llm in one hop.

It speaks the ensemble's tensors, does pre- and postprocessing itself, knows when an answer ends
whatever the runtime, and passes a client's cancellation on at once. An instance answers one request
at a time, for the reason that TokenModel gives.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from minitron_models.decode import Vocabulary
from minitron_models.encode import TextEncoder, TextTensors
from minitron_models.names import PASSED_ON
from minitron_models.relay import Relay, Relayed
from minitron_models.requests import (
    Outputs,
    ResponseSink,
    Sender,
    TokenModel,
    error_response,
    exchange,
    response,
    scalar,
    tensor,
)
from minitron_models.stream import Stream
from minitron_models.text_model import flag, leave_out_torch
from minitron_models.watch import Watch

OWN_OUTPUTS = ("text_output", "finish_reason")


class TritonPythonModel:
    """Called by Triton's Python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the tokenizer; a thread waits for each request in flight."""
        config = json.loads(args["model_config"])
        self._decoupled = config.get("model_transaction_policy", {}).get("decoupled", False)
        self._statistics = {output["name"] for output in config["output"]}.difference(OWN_OUTPUTS)
        leave_out_torch()
        self._encoder = TextEncoder(args)
        skip_special = flag(args, "skip_special_tokens", True)
        self._vocabulary = Vocabulary(self._encoder.tokenizer, skip_special=skip_special)
        self._exclude = flag(args, "exclude_input_in_output", True)
        self._accumulate = flag(args, "accumulate_tokens", False)
        self._ours = flag(args, "finish_reason", False)
        self._model = TokenModel()
        self._watch = Watch(_end)

    def execute(self, requests: list[Any]) -> list[Any] | None:
        """Answer each request, a decoupled one through its sender."""
        if self._decoupled:
            for request in requests:
                self._answer(request, Sender(request))
            return None
        collectors = [_Collector(request) for request in requests]
        for request, collector in zip(requests, collectors, strict=True):
            self._answer(request, collector)
        return [collector.response for collector in collectors]

    def _answer(self, request: Any, sender: ResponseSink) -> None:
        try:
            relayed = self._read(request)
        except ValueError as error:
            sender.fail(str(error), pb_utils.TritonError.INVALID_ARG)
        else:
            Relay(self._model, self._watch, self._vocabulary, relayed, sender).run()

    def _read(self, request: Any) -> Relayed:
        """Return all that a request asks."""
        prompt = self._encoder.prompt(
            TextTensors(
                text=tensor(request, "text_input"),
                stop_words=tensor(request, "stop_words"),
                bad_words=tensor(request, "bad_words"),
                bias_words=tensor(request, "embedding_bias_words"),
                bias_weights=tensor(request, "embedding_bias_weights"),
                end_id=scalar(request, "end_id"),
                pad_id=scalar(request, "pad_id"),
                table_id=scalar(request, "prompt_table_extra_id"),
                chat=scalar(request, "apply_chat_template"),
            )
        )
        streaming = bool(scalar(request, "stream", False))
        sequences = scalar(request, "num_return_sequences", 1)
        if not self._decoupled:
            _check_one_response(streaming, sequences)
        given = {
            target: value
            for name, target in {"max_tokens": "request_output_len", **PASSED_ON}.items()
            if (value := tensor(request, name)) is not None
        }
        excluded = streaming or scalar(request, "exclude_input_in_output", self._exclude)
        return Relayed(
            stream=Stream(
                names=(),
                max_tokens=scalar(request, "max_tokens"),
                streaming=streaming,
                words=prompt.stops,
                prompt=() if excluded else prompt.ids,
            ),
            inputs={
                **prompt.inputs,
                **given,
                "exclude_input_in_output": np.ones((1, 1), np.bool_),
            },
            sequences=sequences,
            statistics=self._statistics.intersection(request.requested_output_names()),
            timeout_us=request.timeout(),
            ours=self._ours,
            accumulate=self._accumulate,
        )


def _end(request_id: str) -> None:
    """Have postprocessing stop a request: the stub hangs if another thread than the first does."""
    inputs = {"TOKENS_BATCH": np.empty((1, 1, 0), np.int32), "STOP": np.ones((1, 1), np.bool_)}
    exchange("postprocessing", request_id, inputs)


def _check_one_response(streaming: bool, sequences: int) -> None:
    if streaming:
        raise ValueError("stream is true, but this tensorrt_llm_bls sends one response (decoupled)")
    if sequences > 1:
        raise ValueError(
            f"num_return_sequences is {sequences}, but this tensorrt_llm_bls sends one response; "
            "serve a repository with decoupled models"
        )


class _Collector:
    """Stands in for a sender where a model has to return its one response: keeps the last."""

    def __init__(self, request: Any) -> None:
        self._request = request
        self.response: Any = response({})

    def send(self, outputs: Outputs, *, last: bool = False) -> None:
        """Keep a response; whether it is the last is seen when no other comes."""
        self.response = response(outputs)

    def fail(self, message: str, code: int) -> None:
        """Keep what is wrong."""
        self.response = error_response(message, code)

    def close(self) -> None:
        """Leave the response as it is."""

    def is_cancelled(self) -> bool:
        """Return whether the client has left; costs a message to the server process."""
        return bool(self._request.is_cancelled())
