"""Triton model `postprocessing`: token ids become the text that they add.

It has one instance, because it remembers streams: preprocessing opens one per request, and each
response of tensorrt_llm is decoded as the next part of its own. A response of no known stream is
decoded by itself. Besides texts it takes three other kinds of request, told apart by an input that
only they have: to open a stream, to stop a request, and to say how many responses arrived.

The end of an answer goes apart from its last text, since there are clients that drop unread what is
marked as the end, and Triton marks the last response of an ensemble's last step, which is this.
"""

from __future__ import annotations

import time
from collections.abc import Hashable
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from minitron_models.config_parameters import flag
from minitron_models.model_calls import TokenModel
from minitron_models.open_streams import OpenStream, OpenStreams, id_rows
from minitron_models.stop_words import StopWords
from minitron_models.text_tokenizer import load_tokenizer
from minitron_models.token_texts import TokenTexts
from minitron_models.triton_io import CANCEL_CHECK_S, Sender, error_response, response, strings
from minitron_models.triton_types import Inputs, Outputs, TritonRequest, TritonResponse
from numpy.typing import NDArray


class TritonPythonModel:
    """Called by Triton's Python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the tokenizer."""
        skip_special = flag(args, "skip_special_tokens", True)
        self._token_texts = TokenTexts(load_tokenizer(args).backend, skip_special=skip_special)
        self._empty_final = flag(args, "empty_final_response", False)
        self._streams = OpenStreams()
        self._model = TokenModel()

    def execute(self, requests: list[TritonRequest]) -> list[TritonResponse | None]:
        """Answer each request on its own: one that is wrong leaves the others alone.

        None stands for one that was answered here. Others of its batch are answered later, but
        preserve_ordering has Triton hand on all in their order.
        """
        return [self._answer(request) for request in requests]

    def _answer(self, request: TritonRequest) -> TritonResponse | None:
        try:
            inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            if "TOKENS_BATCH" not in inputs:
                # Triton counts the inputs of a request, and optional ones make up for this.
                raise ValueError("TOKENS_BATCH is missing")
            if "OPEN_MAX_TOKENS" in inputs:
                return self._open(request.request_id(), inputs)
            if "STOP" in inputs:
                self._model.stop(request.request_id())
                return response({})
            if "WATCHED_STREAM_IDS" in inputs:
                return self._count_responses(inputs["WATCHED_STREAM_IDS"])
            return self._add_text(request, inputs)
        except (ValueError, IndexError) as error:
            return error_response(str(error), pb_utils.TritonError.INVALID_ARG)

    def _open(self, request_id: str, inputs: Inputs) -> TritonResponse:
        """Begin a stream; its name is STREAM_ID, and the client's id where it has one.

        TensorRT-LLM's own model does not pass the stream's id on, so that its responses can be told
        by the client's id alone.
        """
        names: list[Hashable] = [inputs["STREAM_ID"].item()]
        if request_id:
            names.append((request_id, _row(inputs)))
        words = inputs.get("OPEN_STOP_WORDS")
        echo = inputs.get("OPEN_ECHO")
        texts = [] if words is None else [word.decode("utf-8") for word in words.reshape(-1)]
        self._streams.open(
            OpenStream(
                names=tuple(names),
                max_tokens=inputs["OPEN_MAX_TOKENS"].item(),
                streaming=inputs["OPEN_STREAM"].item(),
                words=StopWords(texts) if texts else None,
                prompt=inputs["TOKENS_BATCH"].reshape(-1).tolist(),
                echo=[] if echo is None else echo.reshape(-1).tolist(),
            )
        )
        return response({})

    def _count_responses(self, stream_ids: NDArray[Any]) -> TritonResponse:
        """Say how many responses of each stream arrived, -1 where it is not known: [1, n] both."""
        streams = [self._streams.find(stream_id) for stream_id in stream_ids[0].tolist()]
        counts = [-1 if stream is None else stream.responses for stream in streams]
        return response({"WATCHED_RESPONSES": np.array([counts], np.int32)})

    def _add_text(self, request: TritonRequest, inputs: Inputs) -> TritonResponse | None:
        rows = id_rows(inputs["TOKENS_BATCH"], inputs.get("SEQUENCE_LENGTH"))
        reason = inputs["FINISH_REASON"].item().decode() if "FINISH_REASON" in inputs else ""
        # Of the runtimes, those that know a stream's id say why it ended, too.
        stream_id = inputs["STREAM_ID"].item() if "STREAM_ID" in inputs else None
        name = (request.request_id(), _row(inputs)) if stream_id is None else stream_id
        stream = self._streams.find(name)
        if stream is None:
            texts = [self._token_texts.text(row) for row in rows]
            return response(_text_outputs(texts, [reason] * len(rows)))
        stream.responses += 1
        if stream_id is None and self._check_left(request, stream):
            self._stop(request, stream, stream_id)
        indexed = "SEQUENCE_INDEX" in inputs
        index = inputs["SEQUENCE_INDEX"].item() if indexed else 0
        update = stream.push(rows, index, reason, self._token_texts)
        # With several sequences others may go on; such a stream is forgotten in its turn.
        if update.over and not indexed:
            # One that was cut stays known until the runtime ends it: what still comes of it would
            # else be decoded by itself, and reach the client.
            if update.cut:
                # By the request id alone the other rows of a batch would end, too.
                if stream_id is not None or "BATCH_INDEX" not in inputs:
                    self._stop(request, stream, stream_id)
            else:
                self._streams.close(stream)
        outputs = _text_outputs(update.texts, update.reasons)
        if update.over and self._empty_final:
            sender = Sender(request)
            sender.send(outputs)
            sender.close()
            return None
        return response(outputs)

    def _check_left(self, request: TritonRequest, stream: OpenStream) -> bool:
        """Ask, though seldom, whether the client has left; who knows a stream's id asks itself."""
        now = time.monotonic()
        if stream.told_to_stop or now - stream.checked < CANCEL_CHECK_S:
            return False
        stream.checked = now
        return not self._model.check_client(request)

    def _stop(self, request: TritonRequest, stream: OpenStream, stream_id: int | None) -> None:
        """End the stream at tensorrt_llm, which the ensemble itself does not do."""
        # Without any id there is nothing to call the request by; it runs to its end.
        if not stream.told_to_stop and (stream_id is not None or request.request_id()):
            stream.told_to_stop = True
            self._model.stop(request.request_id(), stream_id)


def _row(inputs: Inputs) -> int:
    """Return which row of its request this is about."""
    return int(inputs["BATCH_INDEX"].item()) if "BATCH_INDEX" in inputs else 0


def _text_outputs(texts: list[str], reasons: list[str]) -> Outputs:
    """Return a text per row, and why it ended where it has: [rows] both."""
    outputs = {"OUTPUT": strings(texts)}
    if any(reasons):
        outputs["FINISH_REASON"] = strings(reasons)
    return outputs
