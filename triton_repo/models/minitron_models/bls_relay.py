"""One request of tensorrt_llm_bls on its way to tensorrt_llm and back."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from minitron_models.client_watch import ClientWatch, WatchedRequest
from minitron_models.drafted_model import DraftedModel
from minitron_models.model_calls import ModelError, TokenModel
from minitron_models.open_streams import LENGTH, STOP, TIMEOUT, OpenStream, SequenceText, id_rows
from minitron_models.token_texts import TokenTexts
from minitron_models.triton_io import ResponseSink, strings
from minitron_models.triton_types import Inputs, Outputs
from numpy.typing import NDArray

Place = tuple[int, int]
"""Where a response belongs: the row of its request, and the sequence."""
INDICES = ("batch_index", "sequence_index")
"""The outputs that say so."""


@dataclass(frozen=True)
class RelayedRequest:
    """What a client wants: of tensorrt_llm, and of the text that its answer becomes."""

    streams: Sequence[OpenStream]  # of each row: each prompt
    inputs: Inputs
    sequences: int  # of all rows
    statistics: Collection[str]  # outputs of tensorrt_llm that the client wants as they are
    timeout_us: int
    reports_streams: bool  # tensorrt_llm says why an answer ended, and pads no row of ids
    accumulate: bool  # each response repeats the text so far
    draft_model: str = ""  # what drafts
    draft_tokens: int = 0  # how many at a time

    @property
    def indices(self) -> tuple[str, ...]:
        """Return the outputs that tell where a response belongs, as upstream sends them."""
        rows = len(self.streams)
        if self.sequences > rows:
            return INDICES
        return ("batch_index",) if rows > 1 else ()


class BlsRelay:
    """Follows the responses of tensorrt_llm and sends their text."""

    def __init__(
        self,
        model: TokenModel,
        watch: ClientWatch,
        token_texts: TokenTexts,
        request: RelayedRequest,
        sender: ResponseSink,
    ) -> None:
        self._model = model
        self._watch = watch
        self._token_texts = token_texts
        self._request = request
        self._sender = sender
        # An id of its own, so that `stop` cannot meet another client's request.
        self._request_id = uuid.uuid4().hex
        self._told_to_stop = False
        self._ended: set[Place] = set()
        self._so_far: dict[Place, str] = {}

    def run(self) -> None:
        """Answer the request, also when something fails.

        What marks the end holds nothing, as upstream: there are clients that drop it unread.
        """
        try:
            # One whose client left while it waited is not begun.
            if self._model.check_client(self._sender):
                self._answer()
        except ModelError as error:
            self._sender.fail(str(error), error.code)
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            self._sender.fail(message, pb_utils.TritonError.INTERNAL)
        else:
            self._sender.close()

    def _answer(self) -> None:
        """Send what tensorrt_llm answers, and what was held back."""
        request = self._request
        # This tool's runtimes end by themselves when time is up; TensorRT-LLM's own model does not.
        timeout_us = 0 if request.reports_streams else request.timeout_us
        with self._watch.over(self._sender, self._request_id, timeout_us) as watched:
            self._follow(watched)
        if not watched.left:
            self._finish(watched.late)

    def _follow(self, watched: WatchedRequest) -> None:
        """Send each response."""
        request = self._request
        plain = self._begin_plain()
        # How many tensors a response has that holds nothing but ids.
        least = 1 if request.reports_streams else 2
        for tensors in self._generator(watched).generate(
            self._request_id, self._requested_outputs(), request.timeout_us, request.inputs
        ):
            if watched.left:
                # The watch is having it stopped; what comes until then is for nobody.
                continue
            if plain and tensors and "finish_reason" not in tensors and not watched.late:
                ids = tensors["output_ids"].reshape(-1).tolist()
                if ids and plain.tokens + len(ids) < request.streams[0].max_tokens:
                    piece = {"text_output": strings([plain.push(ids, last=False)])}
                    if len(tensors) > least:
                        self._add_statistics(piece, tensors)
                    self._sender.send(piece)
                    continue
            place = _place(tensors)
            if tensors and place not in self._ended:
                outputs = self._take_response(place, tensors, watched.late)
                if outputs is not None:
                    self._sender.send(outputs)

    def _generator(self, watched: WatchedRequest) -> TokenModel | DraftedModel:
        """Return what generates the tokens, by itself or from drafts."""
        request = self._request
        if not request.draft_tokens:
            return self._model
        return DraftedModel(
            self._model,
            request.draft_model,
            request.draft_tokens,
            lambda: watched.left or watched.late or self._told_to_stop,
        )

    def _begin_plain(self) -> SequenceText | None:
        """Begin and return the one sequence of a stream without stop words, None of others.

        Nearly every response is a piece of one. A process that takes turns with many others finds
        the processor's caches cold, and each call of a function costs it microseconds: so these
        pieces take the shortest way.
        """
        request = self._request
        stream = request.streams[0]
        several = request.sequences > 1 or "beam_width" in request.inputs
        if several or request.accumulate or not stream.streaming or stream.words is not None:
            return None
        return stream.begin(self._token_texts)

    def _requested_outputs(self) -> list[str]:
        """Return the outputs to ask tensorrt_llm for: each costs time per response."""
        outputs = {"output_ids", *self._request.statistics}
        outputs.add("finish_reason" if self._request.reports_streams else "sequence_length")
        return sorted(outputs.union(self._request.indices))

    def _take_response(self, place: Place, tensors: Outputs, late: bool) -> Outputs | None:
        """Take one of tensorrt_llm's responses; return what to send for it, None if nothing."""
        rows = id_rows(tensors["output_ids"], tensors.get("sequence_length"))
        reason = TIMEOUT if late else ""
        if "finish_reason" in tensors:
            reason = tensors["finish_reason"].item().decode()
        row, sequence = place
        stream = self._request.streams[row]
        if stream.streaming and not (reason or any(rows)):
            # It need not be the end, which is seen when there are no more responses.
            return None
        update = stream.push(rows, sequence, reason, self._token_texts)
        if update.over:
            self._ended.add(place)
            if update.cut and len(self._ended) == self._request.sequences:
                self._stop()
        outputs = self._outputs_of(place, update.texts, update.reasons)
        self._add_statistics(outputs, tensors)
        return outputs

    def _add_statistics(self, outputs: dict[str, NDArray[Any]], tensors: Outputs) -> None:
        """Pass on what the client wants as it is."""
        for name in self._request.statistics:
            if name in tensors:
                outputs[name] = tensors[name]

    def _finish(self, late: bool) -> None:
        """Send what sequences still held back, now that tensorrt_llm has ended."""
        for row, stream in enumerate(self._request.streams):
            for index, sequence in stream.sequences.items():
                if (row, index) not in self._ended:
                    self._send_held(row, index, sequence, late)

    def _send_held(self, row: int, index: int, sequence: SequenceText, late: bool) -> None:
        text = sequence.push((), last=True)
        full = sequence.tokens >= self._request.streams[row].max_tokens
        reason = LENGTH if full else TIMEOUT if late else STOP
        outputs = self._outputs_of((row, index), [text], [reason])
        for name, value in zip(INDICES, (row, index), strict=True):
            if name in self._request.indices:
                outputs[name] = np.array([[value]], np.int32)
        self._sender.send(outputs)

    def _outputs_of(
        self, place: Place, texts: list[str], reasons: list[str]
    ) -> dict[str, NDArray[Any]]:
        if self._request.accumulate and len(texts) == 1:
            texts = [self._so_far.get(place, "") + texts[0]]
            self._so_far[place] = texts[0]
        outputs: dict[str, NDArray[Any]] = {"text_output": strings(texts)}
        if any(reasons):
            outputs["finish_reason"] = strings(reasons)
        return outputs

    def _stop(self) -> None:
        if not self._told_to_stop:
            self._told_to_stop = True
            self._model.stop(self._request_id)


def _place(tensors: Outputs) -> Place:
    """Return where a response belongs; what it does not say is the first."""
    row, sequence = (int(tensors[name].item()) if name in tensors else 0 for name in INDICES)
    return row, sequence
