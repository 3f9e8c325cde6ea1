"""One request on its way through the executor: what is computed, chosen, held back and sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from minitron_trt.executor.requests import Event, FinishReason, OnEvent, Request
from minitron_trt.executor.sampling import Sampler

Words = Sequence[tuple[int, ...]]


def settled(pending: tuple[int, ...], words: Words) -> tuple[int, bool]:
    """Return how many pending tokens are output for certain, and whether a stop word follows them.

    The rest may be the start of a stop word, so it stays pending until more tokens tell.
    """
    matched = max((len(word) for word in words if pending[-len(word) :] == word), default=0)
    if matched:
        return len(pending) - matched, True
    for start in range(len(pending)):
        tail = pending[start:]
        if any(word[: len(tail)] == tail for word in words):
            return start, False
    return len(pending), False


class InFlight:
    """A submitted request; its methods are for the executor's thread, `cancelled` for any."""

    __slots__ = (
        *("cancelled", "computed", "finished", "last", "prompt", "request", "sampler", "slot"),
        *("_deadline", "_generated", "_is_cancelled", "_log_probs", "_on_event", "_pending"),
        *("_settled", "_stop_ids"),
    )

    def __init__(
        self,
        request: Request,
        on_event: OnEvent,
        is_cancelled: Callable[[], bool],
        vocab: int,
        now: float,
    ) -> None:
        self.request = request
        self.prompt = np.asarray(request.prompt, dtype=np.int32)
        self.sampler = Sampler(request.sampling, request.prompt, vocab)
        self.slot = -1  # while it is queued
        self.computed = 0  # tokens in the slot's KV cache
        self.last = -1  # the token that the next step computes, once the prompt is done
        self.cancelled = False
        self.finished = False
        self._on_event = on_event
        self._is_cancelled = is_cancelled
        self._deadline = None if request.timeout_s is None else now + request.timeout_s
        self._generated = 0
        # Most tokens are in no stop word, and that is quick to see.
        self._stop_ids = frozenset(token for word in request.sampling.stop_words for token in word)
        self._settled = 0  # how many pending tokens may be sent
        self._pending: list[int] = []
        self._log_probs: list[float] = []

    @property
    def prefilling(self) -> bool:
        """Return whether part of the prompt is still to be computed."""
        return self.computed < len(self.prompt)

    def interruption(self, now: float) -> FinishReason | None:
        """Return why the request must stop now, if so; raises what the caller's poll raises."""
        if self.cancelled or self._is_cancelled():
            return FinishReason.CANCELLED
        if self._deadline is not None and now >= self._deadline:
            return FinishReason.TIMED_OUT
        return None

    def accept(self, token: int, log_prob: float | None) -> FinishReason | None:
        """Take the next token and return why it is the last, if so; end ids and stop words go."""
        sampling = self.request.sampling
        self.last = token
        self._generated += 1
        if token in sampling.end_ids:
            return FinishReason.END_ID
        self.sampler.accept(token)
        self._pending.append(token)
        if log_prob is not None:
            self._log_probs.append(log_prob)
        if token not in self._stop_ids:
            self._settled = len(self._pending)
        else:
            self._settled, stopped = settled(tuple(self._pending), sampling.stop_words)
            if stopped:
                del self._pending[self._settled :], self._log_probs[self._settled :]
                return FinishReason.STOP_WORDS
        return FinishReason.LENGTH if self._generated == self.request.max_tokens else None

    def send(self) -> None:
        """Send the tokens that are certain, if there are any; raises what the callback raises."""
        count = self._settled
        if not count:
            return
        event = Event(tuple(self._pending[:count]), tuple(self._log_probs[:count]))
        self._settled = 0
        del self._pending[:count], self._log_probs[:count]
        self._on_event(event)

    def send_last(self, reason: FinishReason, error: str | None) -> None:
        """Send the one event that ends the request, with every token still held back."""
        tokens, log_probs = tuple(self._pending), tuple(self._log_probs)
        self._pending, self._log_probs = [], []
        self._on_event(Event(tokens, log_probs, reason, error))
