"""Triton model `postprocessing`: token ids become the text that they add.

It has one instance, because it remembers streams: preprocessing opens one per request, and each
response of tensorrt_llm is decoded as the next part of its own. A response of no known stream is
decoded by itself.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from minitron_models.decode import Vocabulary
from minitron_models.requests import CANCEL_CHECK_S, TokenModel, error_response, response, strings
from minitron_models.stop import StopWords
from minitron_models.stream import Stream, Streams, id_rows
from minitron_models.text_model import flag, leave_out_torch, load_tokenizer
from numpy.typing import NDArray

Inputs = dict[str, NDArray[Any]]


class TritonPythonModel:
    """Called by Triton's Python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the tokenizer."""
        leave_out_torch()
        skip_special = flag(args, "skip_special_tokens", True)
        self._vocabulary = Vocabulary(load_tokenizer(args), skip_special=skip_special)
        self._streams = Streams()
        self._model = TokenModel()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request on its own: one that is wrong leaves the others alone."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            given = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            if "TOKENS_BATCH" not in given:
                # Triton counts the inputs of a request, and optional ones make up for this.
                raise ValueError("TOKENS_BATCH is missing")
            if "OPEN_MAX_TOKENS" in given:
                return self._open(request.request_id(), given)
            if "STOP" in given:
                self._model.stop(request.request_id())
                return response({})
            if "WATCHED_STREAM_IDS" in given:
                return self._watched(given["WATCHED_STREAM_IDS"])
            return self._text(request, given)
        except (ValueError, IndexError) as error:
            return error_response(str(error), pb_utils.TritonError.INVALID_ARG)

    def _open(self, request_id: str, given: Inputs) -> Any:
        names = [given["STREAM_ID"].item(), *([request_id] if request_id else [])]
        words = given.get("OPEN_STOP_WORDS")
        texts = [] if words is None else [word.decode("utf-8") for word in words.reshape(-1)]
        self._streams.open(
            Stream(
                names=tuple(names),
                max_tokens=given["OPEN_MAX_TOKENS"].item(),
                streaming=given["OPEN_STREAM"].item(),
                words=StopWords(texts) if texts else None,
                prompt=given["TOKENS_BATCH"].reshape(-1).tolist(),
            )
        )
        return response({})

    def _watched(self, stream_ids: NDArray[Any]) -> Any:
        found = [self._streams.find(stream_id) for stream_id in stream_ids[0].tolist()]
        counts = [-1 if stream is None else stream.responses for stream in found]
        return response({"WATCHED_RESPONSES": np.array([counts], np.int32)})

    def _text(self, request: Any, given: Inputs) -> Any:
        rows = id_rows(given["TOKENS_BATCH"], given.get("SEQUENCE_LENGTH"))
        reason = given["FINISH_REASON"].item().decode() if "FINISH_REASON" in given else ""
        # Of the runtimes, those that know a stream's id say why it ended, too.
        stream_id = given["STREAM_ID"].item() if "STREAM_ID" in given else None
        stream = self._streams.find(request.request_id() if stream_id is None else stream_id)
        if stream is None:
            return _response([self._vocabulary.text(row) for row in rows], [reason] * len(rows))
        stream.responses += 1
        if stream_id is None and self._is_left(request, stream):
            self._stop(request, stream, stream_id)
        indexed = "SEQUENCE_INDEX" in given
        index = given["SEQUENCE_INDEX"].item() if indexed else 0
        pushed = stream.push(rows, index, reason, self._vocabulary)
        if pushed.over and not indexed:
            if pushed.cut:
                self._stop(request, stream, stream_id)
            else:
                self._streams.close(stream)
        return _response(pushed.texts, pushed.reasons)

    def _is_left(self, request: Any, stream: Stream) -> bool:
        """Return whether the client has left, asked seldom; our runtimes ask by themselves."""
        now = time.monotonic()
        if stream.told_to_stop or now - stream.checked < CANCEL_CHECK_S:
            return False
        stream.checked = now
        return bool(self._model.is_left(request))

    def _stop(self, request: Any, stream: Stream, stream_id: int | None) -> None:
        """End the stream at tensorrt_llm, which the ensemble itself does not do."""
        if not stream.told_to_stop and (stream_id is not None or request.request_id()):
            stream.told_to_stop = True
            self._model.stop(request.request_id(), stream_id)


def _response(texts: list[str], reasons: list[str]) -> Any:
    """Return a response with a text per row, and why it ended where it has."""
    outputs = {"OUTPUT": strings(texts)}
    if any(reasons):
        outputs["FINISH_REASON"] = strings(reasons)
    return response(outputs)
