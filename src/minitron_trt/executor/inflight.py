"""Requests on their way through the executor: what is computed, chosen and sent."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minitron_trt.executor.requests import Event, FinishReason, OnEvent, Request, Timing
from minitron_trt.executor.sampling import Sampler, log_prob
from minitron_trt.executor.step import Floats, Ints


class Ticket:
    """A submitted request: what its sequences share; `cancelled` is for any thread to set."""

    __slots__ = ("_deadline", "_is_cancelled", "arrival", "cancelled", "flights", "request", "send")

    def __init__(
        self,
        request: Request,
        on_event: OnEvent,
        is_cancelled: Callable[[], bool],
        vocab: int,
        now: float,
    ) -> None:
        self.request = request
        self.send = on_event
        self.arrival = now
        self.cancelled = False
        self._is_cancelled = is_cancelled
        self._deadline = None if request.timeout_s is None else now + request.timeout_s
        prompt = np.asarray(request.prompt + request.draft, dtype=np.int32)
        self.flights = [InFlight(self, n, prompt, vocab) for n in range(request.sequences)]

    def interruption(self, now: float) -> FinishReason | None:
        """Return why the request must stop now, if so; raises what the caller's poll raises."""
        if self.cancelled or self._is_cancelled():
            return FinishReason.CANCELLED
        if self._deadline is not None and now >= self._deadline:
            return FinishReason.TIMED_OUT
        return None


class InFlight:
    """One sequence of a request; its methods are for the executor's thread."""

    __slots__ = (
        *("accepted_drafts", "computed", "drafts", "finished", "index", "last", "prompt"),
        *("request", "sampler", "scheduled", "slot", "ticket", "_kept", "_log_probs", "_logits"),
        *("_stop_ids", "_tokens", "_token_times"),
    )

    def __init__(self, ticket: Ticket, index: int, prompt: Ints, vocab: int) -> None:
        request = ticket.request
        self.ticket = ticket
        self.request = request
        self.index = index
        self.prompt = prompt  # and the draft, of which later only what holds
        self.sampler = Sampler(request.sampling, request.prompt, vocab, index)
        self.slot = -1  # while it is queued
        self.computed = 0  # tokens in the slot's KV cache
        self.last = -1  # the token that the next step computes, once the prompt is done
        self.drafts = request.draft  # as long as it is not known how much of it holds
        self.accepted_drafts = 0
        self.finished = False
        self.scheduled: float | None = None  # when it got its slot
        self._token_times: tuple[float, float] | None = None  # of the first and the last
        # Most tokens end no stop word, and that is quick to see.
        self._stop_ids = frozenset(word[-1] for word in request.sampling.stop_words)
        self._tokens: list[int] = []  # these three are for the next event
        self._log_probs: list[float] = []
        self._logits: list[Floats] = []
        self._kept: list[Floats] = []

    @property
    def prefilling(self) -> bool:
        """Return whether part of the prompt is still to be computed."""
        return self.computed < len(self.prompt)

    def kept(self, length: int) -> int:
        """Return of how many of the next `length` tokens, the last ones, all logits are kept."""
        if self.prefilling and self.request.context_logits and self.index == 0:
            return length
        if self.drafts:
            # The token before a draft decides whether its first token holds.
            beyond = self.computed + length - len(self.request.prompt)
            return min(length, max(0, beyond + 1))
        return 0

    def keep(self, logits: Floats) -> None:
        """Keep logits of the prompt for the first event, or those that a draft is checked by."""
        self._kept.append(logits)

    def take_kept(self) -> Floats:
        """Return the logits that were kept, and keep them no longer."""
        kept, self._kept = np.concatenate(self._kept), []
        return kept

    def settle_drafts(self, accepted: int) -> None:
        """Keep in the KV cache the first so many tokens of the draft, and forget the others."""
        self.drafts, self.accepted_drafts = (), accepted
        self.prompt = self.prompt[: len(self.request.prompt) + accepted]
        self.computed = len(self.prompt)

    def accept(self, token: int, logits: Floats, now: float) -> FinishReason | None:
        """Take the next token and return why it is the last, if so.

        An end id goes, a stop word stays, as in TensorRT-LLM's executor.
        """
        request, sampling = self.request, self.request.sampling
        self.last = token
        if request.timing:
            self._token_times = (now if self._token_times is None else self._token_times[0], now)
        if token in sampling.end_ids:
            return FinishReason.END_ID
        self.sampler.accept(token)
        self._tokens.append(token)
        if sampling.log_probs:
            self._log_probs.append(log_prob(logits, token))
        if request.generation_logits:
            # A copy: a view would keep the logits of the whole step.
            self._logits.append(logits.copy())
        if token in self._stop_ids and self._stops():
            return FinishReason.STOP_WORDS
        return FinishReason.LENGTH if len(self.sampler.generated) == request.max_tokens else None

    def _stops(self) -> bool:
        generated = self.sampler.generated
        words = self.request.sampling.stop_words
        return any(tuple(generated[-len(word) :]) == word for word in words)

    def send(self, reason: FinishReason | None = None, error: str | None = None) -> None:
        """Send what is new, with the reason if it is the last; raises what the callback raises."""
        event = Event(
            tuple(self._tokens),
            tuple(self._log_probs),
            reason,
            error,
            self.index,
            np.stack(self._logits) if self._logits else None,
            self.take_kept() if self._kept and not self.prefilling else None,
            self._timing() if self.request.timing else None,
            self.accepted_drafts,
        )
        self._tokens, self._log_probs, self._logits, self._kept = [], [], [], []
        self.ticket.send(event)

    def _timing(self) -> Timing:
        first, last = self._token_times or (None, None)
        return Timing(self.ticket.arrival, self.scheduled, first, last)
