"""One request of tensorrt_llm_bls on its way to tensorrt_llm and back."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from minitron_models.decode import Vocabulary
from minitron_models.requests import Inputs, ModelError, Outputs, ResponseSink, TokenModel, strings
from minitron_models.stream import LENGTH, STOP, TIMEOUT, Answer, Stream, id_rows
from minitron_models.watch import Watch, Watched


@dataclass(frozen=True)
class Relayed:
    """What a request asks: of tensorrt_llm, and of the text that becomes of its answer."""

    stream: Stream
    inputs: Inputs
    sequences: int
    statistics: Collection[str]  # outputs of tensorrt_llm that the client wants as they are
    timeout_us: int
    ours: bool  # whether tensorrt_llm says why an answer ended, and pads no row of ids
    accumulate: bool  # whether each response repeats the text so far


class Relay:
    """Follows the responses of tensorrt_llm and sends their text."""

    def __init__(
        self,
        model: TokenModel,
        watch: Watch,
        vocabulary: Vocabulary,
        relayed: Relayed,
        sender: ResponseSink,
    ) -> None:
        self._model = model
        self._watch = watch
        self._vocabulary = vocabulary
        self._relayed = relayed
        self._sender = sender
        # An id of our own, so that `stop` cannot meet another client's request.
        self._request_id = uuid.uuid4().hex
        self._told_to_stop = False
        self._ended: set[int] = set()
        self._so_far: dict[int, str] = {}

    def run(self) -> None:
        """Answer the request, also when something fails."""
        try:
            # One whose client left while it waited is not begun.
            last = None if self._model.is_left(self._sender) else self._answer()
        except ModelError as error:
            self._sender.fail(str(error), error.code)
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            self._sender.fail(message, pb_utils.TritonError.INTERNAL)
        else:
            if last is None:
                self._sender.close()
            else:
                self._sender.send(last, last=True)

    def _answer(self) -> Outputs | None:
        """Send what tensorrt_llm answers; return the last response, None if there is no other."""
        relayed = self._relayed
        # A runtime of ours ends by itself when time is up, TensorRT-LLM's own model does not.
        timeout_us = 0 if relayed.ours else relayed.timeout_us
        with self._watch.over(self._sender, self._request_id, timeout_us) as watched:
            last = self._follow(watched)
        return None if watched.left else last or self._rest(watched.late)

    def _follow(self, watched: Watched) -> Outputs | None:
        """Send each response; return the one with which all sequences have ended, if it comes."""
        relayed = self._relayed
        plain = self._plain_answer()
        least = 1 if relayed.ours else 2  # tensors of a response that holds nothing but ids
        last = None
        for tensors in self._model.generate(
            self._request_id, self._outputs(), relayed.timeout_us, relayed.inputs
        ):
            if watched.left:
                continue
            if plain and tensors and "finish_reason" not in tensors and not watched.late:
                ids = tensors["output_ids"].reshape(-1).tolist()
                if ids and plain.tokens + len(ids) < relayed.stream.max_tokens:
                    piece = {"text_output": strings([plain.push(ids, last=False)])}
                    if len(tensors) > least:
                        self._add_statistics(piece, tensors)
                    self._sender.send(piece)
                    continue
            index = int(tensors["sequence_index"].item()) if "sequence_index" in tensors else 0
            if tensors and index not in self._ended:
                outputs = self._text_of(index, tensors, watched.late)
                if outputs is None:
                    continue
                if len(self._ended) == relayed.sequences and not self._told_to_stop:
                    last = outputs
                else:
                    self._sender.send(outputs)
        return last

    def _plain_answer(self) -> Answer | None:
        """Return the answer of a stream that is one sequence without stop words, or None.

        Nearly every response is a piece of one. A process that takes turns with many others finds
        the processor's caches cold, and each call of a function costs it microseconds: so these
        pieces take the shortest way.
        """
        relayed = self._relayed
        stream = relayed.stream
        several = relayed.sequences > 1 or "beam_width" in relayed.inputs
        if several or relayed.accumulate or not stream.streaming or stream.words is not None:
            return None
        return stream.begin(self._vocabulary)

    def _outputs(self) -> list[str]:
        """Return the outputs to ask tensorrt_llm for: each costs time per response."""
        outputs = {"output_ids", *self._relayed.statistics}
        outputs.add("finish_reason" if self._relayed.ours else "sequence_length")
        if self._relayed.sequences > 1:
            outputs.add("sequence_index")
        return sorted(outputs)

    def _text_of(self, index: int, tensors: Outputs, late: bool) -> Outputs | None:
        """Return the outputs for one of tensorrt_llm's responses, None when it says nothing."""
        rows = id_rows(tensors["output_ids"], tensors.get("sequence_length"))
        given = TIMEOUT if late else ""
        if "finish_reason" in tensors:
            given = tensors["finish_reason"].item().decode()
        if self._relayed.stream.streaming and not (given or any(rows)):
            # It need not be the end, which is seen when there are no more responses.
            return None
        pushed = self._relayed.stream.push(rows, index, given, self._vocabulary)
        if pushed.over:
            self._ended.add(index)
            if pushed.cut and len(self._ended) == self._relayed.sequences:
                self._stop()
        outputs = self._text(index, pushed.texts, pushed.reasons)
        self._add_statistics(outputs, tensors)
        return outputs

    def _add_statistics(self, outputs: dict[str, Any], tensors: Outputs) -> None:
        """Pass on what the client wants as it is."""
        for name in self._relayed.statistics:
            if name in tensors:
                outputs[name] = tensors[name]

    def _rest(self, late: bool) -> Outputs | None:
        """Return what the sequences still held back, now that tensorrt_llm has ended them."""
        last: dict[str, Any] | None = None
        for index, answer in self._relayed.stream.answers.items():
            if index not in self._ended:
                if last is not None:
                    self._sender.send(last)
                text = answer.push((), last=True)
                full = answer.tokens >= self._relayed.stream.max_tokens
                reason = LENGTH if full else TIMEOUT if late else STOP
                last = self._text(index, [text], [reason])
                if self._relayed.sequences > 1:
                    last["sequence_index"] = np.array([[index]], np.int32)
        return last

    def _text(self, index: int, texts: list[str], reasons: list[str]) -> dict[str, Any]:
        if self._relayed.accumulate and len(texts) == 1:
            texts = [self._so_far.get(index, "") + texts[0]]
            self._so_far[index] = texts[0]
        outputs: dict[str, Any] = {"text_output": strings(texts)}
        if any(reasons):
            outputs["finish_reason"] = strings(reasons)
        return outputs

    def _stop(self) -> None:
        if not self._told_to_stop:
            self._told_to_stop = True
            self._model.stop(self._request_id)
