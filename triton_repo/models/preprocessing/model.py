"""Triton model `preprocessing`: text and words become token ids."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from minitron_models.config_parameters import flag
from minitron_models.model_calls import exchange
from minitron_models.prompt_rows import stack_inputs
from minitron_models.request_texts import read_text_rows
from minitron_models.tensor_names import ENCODED_INPUTS, TEXT_INPUTS
from minitron_models.text_encoder import Prompt, TextEncoder
from minitron_models.triton_io import error_response, response, row_values, tensor
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
            rows = read_text_rows(request, TEXT_INPUTS)
            prompts = [self._encoder.encode(row) for row in rows]
            by_hand = BY_HAND in request.requested_output_names()
            stream_ids = self._open(request, prompts, by_hand=by_hand)
        except ValueError as error:
            return error_response(str(error), pb_utils.TritonError.INVALID_ARG)
        except RuntimeError as error:
            return error_response(str(error), pb_utils.TritonError.INTERNAL)
        inputs = stack_inputs(prompts)
        return response(
            {
                **(_unused_outputs(inputs) if by_hand else {}),
                **{ENCODED_INPUTS[name]: value for name, value in inputs.items()},
                "REQUEST_OUTPUT_LEN": np.array(tensor(request, "REQUEST_OUTPUT_LEN")),
                # postprocessing puts the prompt's text back where it is wanted.
                "OUT_EXCLUDE_INPUT_IN_OUTPUT": np.ones((len(prompts), 1), np.bool_),
                "STREAM_ID": stream_ids,
            }
        )

    def _open(
        self, request: TritonRequest, prompts: Sequence[Prompt], *, by_hand: bool
    ) -> NDArray[np.uint64]:
        """Tell postprocessing what each row's text depends on; return the streams' ids, [rows, 1].

        They are drawn by chance: a client's own id may be another's, too.
        """
        rows = len(prompts)
        lengths = row_values(request, "REQUEST_OUTPUT_LEN", rows)
        streaming = row_values(request, "STREAM", rows, False)
        excluded = row_values(request, "EXCLUDE_INPUT_IN_OUTPUT", rows, self._exclude)
        stream_ids = np.array([[secrets.randbits(64)] for _ in prompts], np.uint64)
        for row, prompt in enumerate(prompts):
            before = [] if excluded[row] or streaming[row] else prompt.ids
            opening: dict[str, NDArray[Any]] = {
                # The prompt's ids, where its text goes before the answer: [1, 1, n].
                "TOKENS_BATCH": np.array([[before]], np.int32).reshape(1, 1, -1),
                "STREAM_ID": stream_ids[row : row + 1],
                "OPEN_MAX_TOKENS": np.array([[lengths[row]]], np.int32),
                "OPEN_STREAM": np.array([[streaming[row]]], np.bool_),
            }
            if rows > 1:
                opening["BATCH_INDEX"] = np.array([[row]], np.int32)
            if by_hand:
                # What tensorrt_llm then does with the prompt is the client's to say: it may repeat
                # it.
                opening["OPEN_ECHO"] = prompt.inputs["input_ids"]
            if prompt.words:
                words = [word.encode("utf-8") for word in prompt.words]
                opening["OPEN_STOP_WORDS"] = np.array([words], np.object_)
            exchange("postprocessing", request.request_id(), opening)
        return stream_ids


def _unused_outputs(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return what upstream sends in any case, as it is where it says nothing."""
    rows = len(inputs["input_ids"])
    no_words = np.array([[[0], [-1]]] * rows, np.int32)
    return {
        "DECODER_INPUT_ID": inputs.get("pad_id", np.zeros((rows, 1), np.int32)),
        "REQUEST_DECODER_INPUT_LEN": np.ones((rows, 1), np.int32),
        "BAD_WORDS_IDS": no_words,
        "STOP_WORDS_IDS": no_words,
        "EMBEDDING_BIAS": np.empty((rows, 0), np.float32),
    }
