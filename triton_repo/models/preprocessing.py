"""Triton model `preprocessing`: text and words become token ids."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from minitron_requests import error_response, response, tensor
from minitron_text import TextEncoder


class TritonPythonModel:
    """Called by Triton's Python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the tokenizer and the ids that end a text."""
        self._encoder = TextEncoder(args)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request on its own: one that is wrong leaves the others alone."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        query = tensor(request, "QUERY")
        try:
            prompt = self._encoder.prompt(
                np.empty(0) if query is None else query,
                tensor(request, "STOP_WORDS_DICT"),
                tensor(request, "BAD_WORDS_DICT"),
                tensor(request, "END_ID"),
            )
        except ValueError as error:
            return error_response(str(error), pb_utils.TritonError.INVALID_ARG)
        return response(
            INPUT_ID=prompt.ids,
            REQUEST_INPUT_LEN=np.array([[prompt.ids.size]], np.int32),
            BAD_WORDS_IDS=prompt.bad_words,
            STOP_WORDS_IDS=prompt.stop_words,
            REQUEST_OUTPUT_LEN=tensor(request, "REQUEST_OUTPUT_LEN"),
            OUT_END_ID=np.array([[prompt.end_id]], np.int32),
        )
