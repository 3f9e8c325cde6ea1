"""Triton model `preprocessing`: text and words become token ids."""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from minitron_models.config_parameters import flag
from minitron_models.model_calls import exchange
from minitron_models.request_texts import read_text_tensors
from minitron_models.tensor_names import ENCODED_INPUTS, TEXT_INPUTS
from minitron_models.text_encoder import Prompt, TextEncoder
from minitron_models.triton_io import error_response, response, scalar, tensor
from minitron_models.triton_types import TritonRequest, TritonResponse
from numpy.typing import NDArray

REQUIRED = {"QUERY": "text_input", "REQUEST_OUTPUT_LEN": "max_tokens"}
"""From required inputs to what clients of the text models call them."""

BY_HAND = "DECODER_INPUT_ID"
"""The output that the ensemble does not ask for: a client calls the models one after another."""


class TritonPythonModel:
    """Called by Triton's Python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the tokenizer and the ids that end a text."""
        self._encoder = TextEncoder(args)
        self._exclude = flag(args, "exclude_input_in_output", True)

    def execute(self, requests: list[TritonRequest]) -> list[TritonResponse]:
        """Answer each request on its own: one that is wrong leaves the others alone."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: TritonRequest) -> TritonResponse:
        try:
            for name, client_name in REQUIRED.items():
                # Triton counts the inputs of a request, and optional ones make up for these.
                if tensor(request, name) is None:
                    raise ValueError(f"{name} / {client_name} is missing")
            prompt = self._encoder.encode(read_text_tensors(request, TEXT_INPUTS))
            length = scalar(request, "REQUEST_OUTPUT_LEN")
            by_hand = BY_HAND in request.requested_output_names()
            stream_id = self._open(request, prompt, length, by_hand=by_hand)
        except ValueError as error:
            return error_response(str(error), pb_utils.TritonError.INVALID_ARG)
        except RuntimeError as error:
            return error_response(str(error), pb_utils.TritonError.INTERNAL)
        return response(
            {
                **(_unused_outputs(prompt) if by_hand else {}),
                **{ENCODED_INPUTS[name]: value for name, value in prompt.inputs.items()},
                "REQUEST_OUTPUT_LEN": np.array([[length]], np.int32),
                # postprocessing puts the prompt's text back where it is wanted.
                "OUT_EXCLUDE_INPUT_IN_OUTPUT": np.ones((1, 1), np.bool_),
                "STREAM_ID": stream_id,
            }
        )

    def _open(
        self, request: TritonRequest, prompt: Prompt, length: int, *, by_hand: bool
    ) -> NDArray[Any]:
        """Tell postprocessing what the text of this request depends on; return the stream's id.

        It is drawn by chance, [1, 1]: a client's own id may be another's, too.
        """
        stream_id = np.array([[secrets.randbits(64)]], np.uint64)
        streaming = bool(scalar(request, "STREAM", False))
        excluded = scalar(request, "EXCLUDE_INPUT_IN_OUTPUT", self._exclude)
        before = [] if excluded or streaming else prompt.ids
        opening: dict[str, NDArray[Any]] = {
            # The prompt's ids, where its text goes before the answer: [1, 1, n].
            "TOKENS_BATCH": np.array([[before]], np.int32).reshape(1, 1, -1),
            "STREAM_ID": stream_id,
            "OPEN_MAX_TOKENS": np.array([[length]], np.int32),
            "OPEN_STREAM": np.array([[streaming]], np.bool_),
        }
        if by_hand:
            # What tensorrt_llm then does with the prompt is the client's to say: it may repeat it.
            opening["OPEN_ECHO"] = prompt.inputs["input_ids"]
        if prompt.words:
            words = [word.encode("utf-8") for word in prompt.words]
            opening["OPEN_STOP_WORDS"] = np.array([words], np.object_)
        exchange("postprocessing", request.request_id(), opening)
        return stream_id


def _unused_outputs(prompt: Prompt) -> dict[str, NDArray[Any]]:
    """Return what upstream sends in any case, as it is where it says nothing."""
    pad_id = prompt.inputs.get("pad_id", np.zeros((1, 1), np.int32))
    no_words = np.array([[[0], [-1]]], np.int32)
    return {
        "DECODER_INPUT_ID": pad_id,
        "REQUEST_DECODER_INPUT_LEN": np.ones((1, 1), np.int32),
        "BAD_WORDS_IDS": no_words,
        "STOP_WORDS_IDS": no_words,
        "EMBEDDING_BIAS": np.empty((1, 0), np.float32),
    }
