"""Triton model `tensorrt_llm_bls`: text in, text out, over tensorrt_llm in one hop.

It speaks the ensemble's tensors, does pre- and postprocessing itself, knows when an answer ends
whatever the runtime, and passes a client's cancellation on at once. An instance answers one request
at a time, for the reason that TokenModel gives.
"""

from __future__ import annotations

import json

import numpy as np
import triton_python_backend_utils as pb_utils
from minitron_models.bls_relay import BlsRelay, RelayedRequest
from minitron_models.client_watch import ClientWatch
from minitron_models.config_parameters import flag, parameter
from minitron_models.model_calls import TokenModel, exchange
from minitron_models.open_streams import OpenStream
from minitron_models.prompt_rows import stack_inputs
from minitron_models.request_texts import read_text_rows
from minitron_models.tensor_names import PASSED_ON, TEXT_INPUTS
from minitron_models.text_encoder import TextEncoder
from minitron_models.token_texts import TokenTexts
from minitron_models.triton_io import (
    ResponseSink,
    Sender,
    error_response,
    response,
    row_values,
    tensor,
)
from minitron_models.triton_types import Outputs, TritonRequest, TritonResponse

OWN_OUTPUTS = ("text_output", "finish_reason")
"""What this model makes itself; its other outputs are tensorrt_llm's, of the same names."""

CLIENT_NAMES = {name: name for name in TEXT_INPUTS}


class TritonPythonModel:
    """Called by Triton's Python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the tokenizer; a thread waits for each request in flight."""
        config = json.loads(args["model_config"])
        self._decoupled = config.get("model_transaction_policy", {}).get("decoupled", False)
        self._statistics = {output["name"] for output in config["output"]}.difference(OWN_OUTPUTS)
        self._encoder = TextEncoder(args)
        skip_special = flag(args, "skip_special_tokens", True)
        self._token_texts = TokenTexts(self._encoder.tokenizer.backend, skip_special=skip_special)
        self._exclude = flag(args, "exclude_input_in_output", True)
        self._accumulate = flag(args, "accumulate_tokens", False)
        self._reports_streams = flag(args, "finish_reason", False)
        self._draft_model = parameter(args, "tensorrt_llm_draft_model_name", "")
        self._model = TokenModel()
        self._watch = ClientWatch(_stop_by_postprocessing)

    def execute(self, requests: list[TritonRequest]) -> list[TritonResponse] | None:
        """Answer each request, a decoupled one through its sender."""
        if self._decoupled:
            for request in requests:
                self._answer(request, Sender(request))
            return None
        collectors = [_Collector(request) for request in requests]
        for request, collector in zip(requests, collectors, strict=True):
            self._answer(request, collector)
        return [collector.response for collector in collectors]

    def _answer(self, request: TritonRequest, sender: ResponseSink) -> None:
        try:
            relayed = self._read(request)
        except ValueError as error:
            sender.fail(str(error), pb_utils.TritonError.INVALID_ARG)
        else:
            BlsRelay(self._model, self._watch, self._token_texts, relayed, sender).run()

    def _read(self, request: TritonRequest) -> RelayedRequest:
        """Read a request; ValueError names the input that is wrong."""
        texts = read_text_rows(request, CLIENT_NAMES)
        rows = len(texts)
        streaming = row_values(request, "stream", rows, False)
        sequences = row_values(request, "num_return_sequences", rows, 1)
        if not self._decoupled:
            _check_one_response(any(streaming), max(sequences), rows)
        draft_tokens = max(row_values(request, "num_draft_tokens", rows, 0))
        if draft_tokens:
            self._check_drafts(request, draft_tokens, rows, max(sequences))
        prompts = [self._encoder.encode(text) for text in texts]
        passed_on = {
            target: value
            for name, target in {"max_tokens": "request_output_len", **PASSED_ON}.items()
            if (value := tensor(request, name)) is not None
        }
        lengths = row_values(request, "max_tokens", rows)
        excluded = row_values(request, "exclude_input_in_output", rows, self._exclude)
        return RelayedRequest(
            streams=[
                OpenStream(
                    names=(),
                    max_tokens=lengths[row],
                    streaming=bool(streaming[row]),
                    words=prompt.stop_words,
                    prompt=() if streaming[row] or excluded[row] else prompt.ids,
                )
                for row, prompt in enumerate(prompts)
            ],
            inputs={
                **stack_inputs(prompts),
                **passed_on,
                # This model puts a prompt before its answer itself: it has the ids, which need not
                # come back.
                "exclude_input_in_output": np.ones((rows, 1), np.bool_),
            },
            sequences=sum(sequences),
            statistics=self._statistics.intersection(request.requested_output_names()),
            timeout_us=request.timeout(),
            reports_streams=self._reports_streams,
            accumulate=self._accumulate,
            draft_model=self._draft_model,
            draft_tokens=draft_tokens,
        )

    def _check_drafts(
        self, request: TritonRequest, draft_tokens: int, rows: int, sequences: int
    ) -> None:
        """Raise ValueError, naming the input, where a draft model cannot do what is wanted."""
        if not self._draft_model:
            raise ValueError(
                "num_draft_tokens needs a draft model beside tensorrt_llm, which this repository "
                "lacks; leave it out, or write the repository with triton-repo --draft"
            )
        if draft_tokens < 0:
            raise ValueError(f"num_draft_tokens is {draft_tokens}; expected 0 or more")
        beams = max(row_values(request, "beam_width", rows, 1))
        for name, number in (
            ("text_input", rows),
            ("num_return_sequences", sequences),
            ("beam_width", beams),
        ):
            if number > 1:
                raise ValueError(f"{name} is for {number} texts, but drafts are made for one")
        for name in ("use_draft_logits", "return_context_logits"):
            if any(row_values(request, name, rows, False)):
                raise ValueError(f"{name} cannot be had with num_draft_tokens; leave one out")


def _stop_by_postprocessing(request_id: str) -> None:
    """Have postprocessing stop a request: on the watch's thread TokenModel would hang."""
    inputs = {"TOKENS_BATCH": np.empty((1, 1, 0), np.int32), "STOP": np.ones((1, 1), np.bool_)}
    exchange("postprocessing", request_id, inputs)


def _check_one_response(streaming: bool, sequences: int, prompts: int) -> None:
    if streaming:
        raise ValueError("stream is true, but this tensorrt_llm_bls sends one response (decoupled)")
    if sequences > 1:
        raise ValueError(
            f"num_return_sequences is {sequences}, but this tensorrt_llm_bls sends one response; "
            "serve a repository with decoupled models"
        )
    if prompts > 1:
        raise ValueError(
            f"text_input holds {prompts} prompts, but this tensorrt_llm_bls sends one response; "
            "serve a repository with decoupled models"
        )


class _Collector:
    """Stands in for a sender where a model has to return its one response: keeps the last."""

    def __init__(self, request: TritonRequest) -> None:
        self._request = request
        self.response: TritonResponse = response({})

    def send(self, outputs: Outputs) -> None:
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
