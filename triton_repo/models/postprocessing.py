"""Triton model `postprocessing`: token ids become the text that they add."""

from __future__ import annotations

from typing import Any

from minitron_requests import scalar, stop, tensor, text_response
from minitron_text import TextDecoder


class TritonPythonModel:
    """Called by Triton's Python backend; remembers nothing between responses."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the tokenizer."""
        self._decoder = TextDecoder(args)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each response of tensorrt_llm with its text."""
        for request in requests:
            # The ensemble cancels its later steps but not the one that is generating.
            if request.is_cancelled() and request.request_id():
                stop(request.request_id())
        return [text_response("OUTPUT", self._text(request)) for request in requests]

    def _text(self, request: Any) -> str:
        tokens, context = tensor(request, "TOKENS_BATCH"), tensor(request, "CONTEXT_IDS")
        assert tokens is not None
        text: str = self._decoder.new_text(
            [] if context is None else context.reshape(-1).tolist(),
            tokens[0, 0, : scalar(request, "SEQUENCE_LENGTH")].tolist(),
            scalar(request, "IS_FINAL", True),
        )
        return text
