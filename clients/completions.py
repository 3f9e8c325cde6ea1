"""Whole answers, put together from chunks."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from minitron_trt.clients.messages import Chunk, GenerateRequest
from minitron_trt.errors import UsageError

_COUNT: Final = "num_output_tokens"
# A response has these for its own tokens only; what else comes repeatedly is a total so far.
_PER_RESPONSE: Final = frozenset({"output_log_probs", "generation_logits", _COUNT})


class Completion(str):
    """One sequence of an answer: its whole text, as a string that knows more.

    `finish_reason` is stop, length, timeout or cancelled, None where the model does not say.
    `outputs` holds each other tensor's values, flat: of what each response has for its own tokens
    those of all responses, in order, of any other tensor those of the last that had it.
    `first_chunk_s` and `total_s` are seconds from the start of the request to its first piece and
    its end.
    """

    __slots__ = ("finish_reason", "first_chunk_s", "outputs", "request", "token_ids", "total_s")

    finish_reason: str | None
    first_chunk_s: float | None
    outputs: Mapping[str, Sequence[Any]]
    request: GenerateRequest
    token_ids: Sequence[int]
    total_s: float

    @property
    def text(self) -> str:
        """Return the text alone."""
        return str(self)

    @property
    def prompt_tokens(self) -> int | None:
        """Return how many tokens the prompt has, None where the model does not say."""
        counts = self.outputs.get("num_input_tokens")
        return int(counts[-1]) if counts else None

    @property
    def completion_tokens(self) -> int | None:
        """Return how many tokens were made, None where the model does not say."""
        if self.token_ids:
            return len(self.token_ids)
        counts = self.outputs.get(_COUNT)
        return None if counts is None else sum(counts)

    @property
    def log_probs(self) -> Sequence[float] | None:
        """Return the log-prob of each token, None unless `return_log_probs` asked for them."""
        return self.outputs.get("output_log_probs")


class Collector:
    """Puts the sequences of one answer together as its chunks come."""

    def __init__(self, request: GenerateRequest) -> None:
        self._request = request
        self._start: float | None = None
        self._first_s: float | None = None
        self._last_s = 0.0
        self._chunks: list[Chunk] = []

    def begin(self) -> None:
        """Start the clock, once: the request is about to be sent."""
        if self._start is None:
            self._start = time.monotonic()

    def add(self, chunk: Chunk) -> None:
        """Take a chunk, of any sequence."""
        self._last_s = time.monotonic() - (self._start or 0.0)
        if self._first_s is None and chunk.says_something:
            self._first_s = self._last_s
        self._chunks.append(chunk)

    def completions(self) -> Sequence[Completion]:
        """Return the sequences in their order, as far as they came."""
        chunks: dict[int, list[Chunk]] = {}
        for chunk in self._chunks:
            # The chunk that closes an answer has the number 0 and is of no sequence.
            if not chunk.final or chunk.says_something:
                chunks.setdefault(chunk.sequence, []).append(chunk)
        return [self._join(chunks[index]) for index in sorted(chunks)]

    def first(self) -> Completion:
        """Return the one sequence of an answer, as far as it came."""
        # An answer without text is as false as any empty string.
        return next(iter(self.completions() or [self._join([])]))

    def _join(self, chunks: Sequence[Chunk]) -> Completion:
        completion = Completion("".join(chunks))
        reasons = [chunk.finish_reason for chunk in chunks if chunk.finish_reason]
        completion.finish_reason = reasons[-1] if reasons else None
        completion.token_ids = [token for chunk in chunks for token in chunk.token_ids]
        completion.outputs = _joined(chunks)
        completion.request = self._request
        completion.first_chunk_s = self._first_s
        completion.total_s = self._last_s
        return completion


def _joined(chunks: Sequence[Chunk]) -> dict[str, Sequence[Any]]:
    outputs: dict[str, list[Any]] = {}
    for chunk in chunks:
        for name, values in chunk.outputs.items():
            if name in _PER_RESPONSE and name in outputs:
                outputs[name].extend(values)
            else:
                outputs[name] = list(values)
    return dict(outputs)


def check_single(request: GenerateRequest) -> None:
    """Raise UsageError for a request whose sequences would run together in one text."""
    if request.sequences > 1:
        raise UsageError(
            f"the request asks for {request.sequences} sequences and a text holds one; "
            "use completions() or chunks()"
        )
