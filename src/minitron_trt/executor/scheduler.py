"""In-flight batching: requests share steps, join between them, and leave once they are done."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Final

import numpy as np

from minitron_trt.errors import BadInputError, MinitronError, RefusedError, UsageError
from minitron_trt.executor.inflight import InFlight
from minitron_trt.executor.packing import pack
from minitron_trt.executor.requests import FinishReason, OnEvent, Request
from minitron_trt.executor.sampling import log_prob
from minitron_trt.executor.step import Floats, StepModel

MAX_TOKENS_PER_STEP: Final = 512
MAX_QUEUE_SIZE: Final = 1024

log = logging.getLogger(__name__)


def _never() -> bool:
    return False


class Executor:
    """Runs requests against a model, as many at once as it has slots.

    A step computes one token of every sequence that has its prompt behind it and, with what is left
    of `max_tokens_per_step`, chunks of prompts in order of arrival. `start` runs steps on a thread
    of its own that sleeps while there is nothing to do; without it, call `step`.
    """

    def __init__(
        self,
        model: StepModel,
        *,
        max_tokens_per_step: int = MAX_TOKENS_PER_STEP,
        max_queue_size: int = MAX_QUEUE_SIZE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # With fewer, sequences that generate could keep a prompt out for good.
        if max_tokens_per_step < model.slots:
            raise UsageError(
                f"max_tokens_per_step is {max_tokens_per_step}; expected at least one token for "
                f"each of the {model.slots} slots"
            )
        self._model = model
        self._max_tokens_per_step = max_tokens_per_step
        self._max_queue_size = max_queue_size
        self._clock = clock
        self._thread: threading.Thread | None = None
        self._slots: list[InFlight | None] = [None] * model.slots
        self._prefilling: list[InFlight] = []
        # These three are shared with the threads that submit and cancel.
        self._wake = threading.Condition()
        self._queue: deque[InFlight] = deque()
        self._by_id: dict[str, InFlight] = {}
        self._closing = False

    def __enter__(self) -> Executor:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def active(self) -> int:
        """Return how many requests have a slot."""
        return len(self._slots) - self._slots.count(None)

    @property
    def queued(self) -> int:
        """Return how many requests wait for a slot."""
        return len(self._queue)

    def start(self) -> None:
        """Begin to run steps on a thread of the executor's own."""
        if self._thread is not None:
            raise UsageError("the executor was started before")
        self._thread = threading.Thread(target=self._run, name="minitron-executor", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop after the step in progress; what is outstanding ends as cancelled."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        for flight in self._outstanding():
            self._finish(flight, FinishReason.CANCELLED)

    def submit(
        self, request: Request, on_event: OnEvent, is_cancelled: Callable[[], bool] = _never
    ) -> None:
        """Queue a request whose news go to `on_event`; `is_cancelled` is asked once a step.

        BadInputError names the field this model cannot run; RefusedError when the queue is full.
        """
        request.check(self._model)
        flight = InFlight(request, on_event, is_cancelled, self._model.vocab, self._clock())
        with self._wake:
            if self._closing:
                raise RefusedError("the executor is closed; it takes no more requests")
            if request.request_id in self._by_id:
                raise BadInputError(
                    f"request_id {request.request_id!r} is in use by a request that has not "
                    "finished; choose another"
                )
            if len(self._queue) >= self._max_queue_size:
                raise RefusedError(
                    f"{len(self._queue)} requests are waiting, as many as max_queue_size allows; "
                    "try again later"
                )
            self._by_id[request.request_id] = flight
            self._queue.append(flight)
            self._wake.notify_all()

    def cancel(self, request_id: str) -> None:
        """End a request before the next step; one that is unknown or finished is no error."""
        with self._wake:
            flight = self._by_id.get(request_id)
        if flight is not None:
            flight.cancelled = True

    def step(self) -> bool:
        """Run one step and send its events; False when no request needed one."""
        self._interrupt()
        self._admit()
        self._prefilling = [f for f in self._prefilling if f.prefilling and not f.finished]
        generating = [flight for flight in self._slots if flight and not flight.prefilling]
        flights, batch = pack(generating, self._prefilling, self._max_tokens_per_step)
        if not flights:
            return False
        try:
            logits = self._model.step(batch)
        except Exception as error:
            log.exception("a step of %d sequences failed", len(flights))
            for flight in flights:
                self._finish(flight, FinishReason.ERROR, f"the model failed: {error!r}")
            return True
        self._advance(flights, batch.lengths.tolist(), logits)
        return True

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closing or self._by_id)
                if self._closing:
                    return
            try:
                self.step()
            except Exception as error:
                # A fault of ours must not leave callers waiting for ever.
                log.exception("the executor failed")
                for flight in self._outstanding():
                    self._finish(flight, FinishReason.ERROR, f"the executor failed: {error!r}")

    def _outstanding(self) -> tuple[InFlight, ...]:
        with self._wake:
            return tuple(self._by_id.values())

    def _interrupt(self) -> None:
        """End the requests, queued ones too, that were cancelled or took too long."""
        now = self._clock()
        for flight in self._outstanding():
            try:
                reason = flight.interruption(now)
            except Exception as error:
                self._finish(flight, FinishReason.ERROR, f"is_cancelled raised {error!r}")
                continue
            if reason is not None:
                self._finish(flight, reason)

    def _admit(self) -> None:
        with self._wake:
            while self._queue and None in self._slots:
                flight = self._queue.popleft()
                flight.slot = self._slots.index(None)
                self._slots[flight.slot] = flight
                self._prefilling.append(flight)

    def _advance(self, flights: list[InFlight], lengths: list[int], logits: Floats) -> None:
        """Give each sequence that has its prompt behind it the token its logits call for."""
        best = logits.argmax(axis=1)
        finite = np.isfinite(logits[np.arange(len(best)), best]).tolist()
        tokens = best.tolist()
        for row, flight in enumerate(flights):
            # The callback of an earlier row may have closed the executor.
            if flight.finished:
                continue
            flight.computed += lengths[row]
            if flight.prefilling:
                continue
            try:
                token = tokens[row] if finite[row] and flight.sampler.plain else None
                self._take(flight, token, logits[row])
            except Exception as error:
                log.exception("request %r failed", flight.request.request_id)
                said = str(error) if isinstance(error, MinitronError) else repr(error)
                self._finish(flight, FinishReason.ERROR, said)

    def _take(self, flight: InFlight, token: int | None, logits: Floats) -> None:
        if token is None:
            token = flight.sampler.choose(logits)
        chance = log_prob(logits, token) if flight.request.sampling.log_probs else None
        reason = flight.accept(token, chance)
        if reason is None:
            flight.send()
        else:
            self._finish(flight, reason)

    def _finish(self, flight: InFlight, reason: FinishReason, error: str | None = None) -> None:
        """Free what a request holds, then send its last event; the second time does nothing."""
        with self._wake:
            if flight.finished:
                return
            flight.finished = True
            del self._by_id[flight.request.request_id]
            if flight.slot >= 0:
                self._slots[flight.slot] = None
            else:
                self._queue.remove(flight)
        try:
            flight.send_last(reason, error)
        except Exception:
            log.exception("the callback of request %r failed", flight.request.request_id)
