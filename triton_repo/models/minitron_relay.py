"""One request of tensorrt_llm_bls on its way to tensorrt_llm and back."""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from minitron_decode import Vocabulary
from minitron_requests import CANCEL_CHECK_S, error_response, finish, generate, stop, strings
from minitron_stream import LENGTH, STOP, Stream, id_rows
from numpy.typing import NDArray

_TOKENS = ("output_ids", "sequence_length")


@dataclass(frozen=True)
class Relayed:
    """What a request asks: of tensorrt_llm, and of the text that becomes of its answer."""

    stream: Stream
    inputs: Mapping[str, NDArray[Any]]
    sequences: int
    statistics: Collection[str]  # outputs of tensorrt_llm that the client wants as they are
    timeout_us: int
    reports_end: bool  # whether tensorrt_llm has the output finish_reason
    accumulate: bool  # whether each response repeats the text so far


class Relay:
    """Follows the responses of tensorrt_llm and sends their text."""

    def __init__(self, vocabulary: Vocabulary, relayed: Relayed, sender: Any) -> None:
        self._vocabulary = vocabulary
        self._relayed = relayed
        self._sender = sender
        # An id of our own, so that `stop` cannot meet another client's request.
        self._request_id = uuid.uuid4().hex
        self._checked = time.monotonic()
        self._left = False
        self._told_to_stop = False
        self._ended: set[int] = set()
        self._so_far: dict[int, str] = {}

    def run(self) -> None:
        """Answer the request, also when something fails."""
        try:
            last = self._follow()
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            last = error_response(message, pb_utils.TritonError.INTERNAL)
        finish(self._sender, last)

    def _follow(self) -> Any:
        """Send what tensorrt_llm answers; return the last response, None if there is no other."""
        relayed = self._relayed
        last = None
        for answer in generate(
            self._request_id, self._outputs(), relayed.timeout_us, **relayed.inputs
        ):
            if answer.has_error():
                error = answer.error()
                return error_response(error.message(), error.code())
            if self._is_left():
                self._stop()
                continue
            tensors = {tensor.name(): tensor for tensor in answer.output_tensors()}
            index = self._index(tensors)
            if tensors and index not in self._ended:
                response = self._response(index, tensors)
                if len(self._ended) == relayed.sequences and not self._told_to_stop:
                    last = response
                else:
                    self._sender.send(response)
        return None if self._left else last or self._rest()

    def _outputs(self) -> list[str]:
        """Return the outputs to ask tensorrt_llm for: each costs time per response."""
        outputs = {*_TOKENS, *self._relayed.statistics}
        if self._relayed.reports_end:
            outputs.add("finish_reason")
        if self._relayed.sequences > 1:
            outputs.add("sequence_index")
        return sorted(outputs)

    def _index(self, tensors: Mapping[str, Any]) -> int:
        found = tensors.get("sequence_index") if self._relayed.sequences > 1 else None
        return 0 if found is None else int(found.as_numpy().item())

    def _response(self, index: int, tensors: Mapping[str, Any]) -> Any:
        """Return the response to one of tensorrt_llm's."""
        stream = self._relayed.stream
        rows = id_rows(tensors["output_ids"].as_numpy(), tensors["sequence_length"].as_numpy())
        found = tensors.get("finish_reason")
        given = "" if found is None else found.as_numpy().item().decode()
        answers = stream.answers_for(rows, index, self._vocabulary)
        full = answers[0].tokens + len(rows[0]) >= stream.max_tokens
        last = bool(given) or full or not stream.streaming
        texts = [answer.push(row, last=last) for answer, row in zip(answers, rows, strict=True)]
        if last or all(answer.stopped for answer in answers):
            self._ended.add(index)
            if not last and len(self._ended) == self._relayed.sequences:
                self._stop()
        reasons = [stream.reason(answer, given, last=last) for answer in answers]
        passed = [tensors[name] for name in self._relayed.statistics if name in tensors]
        return self._text(index, texts, reasons, passed)

    def _rest(self) -> Any:
        """Return what the sequences still held back, now that tensorrt_llm has ended them."""
        last = None
        for index, answer in self._relayed.stream.answers.items():
            if index not in self._ended:
                if last is not None:
                    self._sender.send(last)
                text = answer.push((), last=True)
                full = answer.tokens >= self._relayed.stream.max_tokens
                passed = []
                if self._relayed.sequences > 1 and "sequence_index" in self._relayed.statistics:
                    passed = [pb_utils.Tensor("sequence_index", np.array([[index]], np.int32))]
                last = self._text(index, [text], [LENGTH if full else STOP], passed)
        return last

    def _text(self, index: int, texts: list[str], reasons: list[str], passed: list[Any]) -> Any:
        if self._relayed.accumulate and len(texts) == 1:
            texts = [self._so_far.get(index, "") + texts[0]]
            self._so_far[index] = texts[0]
        tensors = [pb_utils.Tensor("text_output", strings(*texts)), *passed]
        if any(reasons):
            tensors.append(pb_utils.Tensor("finish_reason", strings(*reasons)))
        return pb_utils.InferenceResponse(tensors)

    def _stop(self) -> None:
        if not self._told_to_stop:
            self._told_to_stop = True
            stop(self._request_id)

    def _is_left(self) -> bool:
        """Return whether the client has left, asked seldom.

        Asked on the thread that answers: from another one it brings the stub of Triton 2.51 down.
        """
        now = time.monotonic()
        if not self._left and now - self._checked >= CANCEL_CHECK_S:
            self._checked = now
            self._left = bool(self._sender.is_cancelled())
        return self._left
