"""Triton model `preprocessing`: text and words become token ids."""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from minitron_models.encode import Prompt, TextEncoder, TextTensors
from minitron_models.requests import error_response, exchange, response, scalar, tensor
from minitron_models.text_model import flag, leave_out_torch

REQUIRED = {"QUERY": "text_input", "REQUEST_OUTPUT_LEN": "max_tokens"}
"""From required inputs to what clients of the text models call them."""

OUTPUTS = {
    "input_ids": "INPUT_ID",
    "input_lengths": "REQUEST_INPUT_LEN",
    "stop_words_list": "STOP_WORDS_IDS",
    "bad_words_list": "BAD_WORDS_IDS",
    "embedding_bias": "EMBEDDING_BIAS",
    "end_id": "OUT_END_ID",
    "pad_id": "OUT_PAD_ID",
    "prompt_table_extra_ids": "OUT_PROMPT_TABLE_EXTRA_IDS",
}
"""From tensorrt_llm's inputs to this model's outputs; what says nothing is left out."""


class TritonPythonModel:
    """Called by Triton's Python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the tokenizer and the ids that end a text."""
        leave_out_torch()
        self._encoder = TextEncoder(args)
        self._exclude = flag(args, "exclude_input_in_output", True)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request on its own: one that is wrong leaves the others alone."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            for name, clients in REQUIRED.items():
                # Triton counts the inputs of a request, and optional ones make up for these.
                if tensor(request, name) is None:
                    raise ValueError(f"{name} / {clients} is missing")
            prompt = self._encoder.prompt(
                TextTensors(
                    text=tensor(request, "QUERY"),
                    stop_words=tensor(request, "STOP_WORDS_DICT"),
                    bad_words=tensor(request, "BAD_WORDS_DICT"),
                    bias_words=tensor(request, "EMBEDDING_BIAS_WORDS"),
                    bias_weights=tensor(request, "EMBEDDING_BIAS_WEIGHTS"),
                    end_id=scalar(request, "END_ID"),
                    pad_id=scalar(request, "PAD_ID"),
                    table_id=scalar(request, "PROMPT_TABLE_EXTRA_ID"),
                    chat=scalar(request, "APPLY_CHAT_TEMPLATE"),
                )
            )
            length = scalar(request, "REQUEST_OUTPUT_LEN")
            stream_id = self._open(request, prompt, length)
        except ValueError as error:
            return error_response(str(error), pb_utils.TritonError.INVALID_ARG)
        except RuntimeError as error:
            return error_response(str(error), pb_utils.TritonError.INTERNAL)
        return response(
            {
                **{OUTPUTS[name]: value for name, value in prompt.inputs.items()},
                "REQUEST_OUTPUT_LEN": np.array([[length]], np.int32),
                # postprocessing puts the prompt's text back where it is wanted.
                "OUT_EXCLUDE_INPUT_IN_OUTPUT": np.ones((1, 1), np.bool_),
                "STREAM_ID": stream_id,
            }
        )

    def _open(self, request: Any, prompt: Prompt, length: int) -> np.ndarray[Any, Any]:
        """Tell postprocessing what the text of this request depends on, and return its name."""
        stream_id = np.array([[secrets.randbits(64)]], np.uint64)
        streaming = bool(scalar(request, "STREAM", False))
        excluded = scalar(request, "EXCLUDE_INPUT_IN_OUTPUT", self._exclude)
        before = [] if excluded or streaming else prompt.ids
        opening: dict[str, np.ndarray[Any, Any]] = {
            "TOKENS_BATCH": np.array([[before]], np.int32).reshape(1, 1, -1),
            "STREAM_ID": stream_id,
            "OPEN_MAX_TOKENS": np.array([[length]], np.int32),
            "OPEN_STREAM": np.array([[streaming]], np.bool_),
        }
        if prompt.words:
            words = [word.encode("utf-8") for word in prompt.words]
            opening["OPEN_STOP_WORDS"] = np.array([words], np.object_)
        exchange("postprocessing", request.request_id(), opening)
        return stream_id
