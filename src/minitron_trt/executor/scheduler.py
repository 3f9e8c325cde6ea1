"""In-flight batching: requests share steps, join between them, and leave once they are done."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Final

import numpy as np

from minitron_trt.errors import BadInputError, MinitronError, RefusedError, UsageError
from minitron_trt.executor.inflight import InFlight, Ticket
from minitron_trt.executor.packing import last_logits, pack
from minitron_trt.executor.requests import FinishReason, OnEvent, Request
from minitron_trt.executor.step import Floats, StepBatch, StepModel
from minitron_trt.host.machine import usable_cores

MAX_TOKENS_PER_STEP: Final = 512
MAX_QUEUE_SIZE: Final = 1024
# Logits; with fewer, threads would only wait for each other's turn to run Python.
_WORTH_A_THREAD: Final = 2**19

log = logging.getLogger(__name__)


def _never() -> bool:
    return False


def _check_drafts(flight: InFlight, now: float) -> FinishReason | None:
    """Give a sequence its tokens as long as its draft proposed them, and the one after."""
    drafts, reason = flight.drafts, None
    for place, row in enumerate(flight.take_kept()):
        token = flight.sampler.choose(row)
        reason = flight.accept(token, row, now)
        proposed = place < len(drafts) and token == drafts[place]
        if reason is not None or not proposed:
            flight.settle_drafts(place + proposed)
            break
    return reason


@dataclass(frozen=True, slots=True)
class Stats:
    """How busy an executor is; the last three are the step in progress or the last one."""

    slots: int
    active: int  # sequences that have a slot
    waiting: int  # sequences that wait for one
    steps: int  # since the beginning
    generating: int = 0  # sequences
    prefilling: int = 0  # sequences
    prefill_tokens: int = 0


class Executor:
    """Runs requests against a model, as many sequences at once as it has slots.

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
        self._steps = 0
        self._cores = usable_cores()
        self._choosers = ThreadPoolExecutor(self._cores, "minitron-sampler")
        self._packed = (0, 0, 0)  # sequences generating and prefilling, and tokens of the latter
        # These three are shared with the threads that submit and cancel.
        self._wake = threading.Condition()
        self._queue: deque[InFlight] = deque()
        self._by_id: dict[str, Ticket] = {}
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

    def stats(self) -> Stats:
        """Return how busy the executor is; any thread may ask."""
        active = len(self._slots) - self._slots.count(None)
        packed = self._packed if active else (0, 0, 0)
        return Stats(len(self._slots), active, len(self._queue), self._steps, *packed)

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
        for ticket in self._outstanding():
            self._finish_all(ticket.flights, FinishReason.CANCELLED)
        self._choosers.shutdown()

    def check(self, request: Request) -> None:
        """Raise BadInputError, naming the field, when this executor can never run the request."""
        request.check(self._model)
        most = max(len(self._slots), self._max_queue_size)
        if request.sequences > most:
            raise BadInputError(
                f"num_return_sequences is {request.sequences}; at most {most} fit into the queue"
            )

    def submit(
        self, request: Request, on_event: OnEvent, is_cancelled: Callable[[], bool] = _never
    ) -> None:
        """Queue a request whose news go to `on_event`; `is_cancelled` is asked once a step.

        BadInputError as from `check`; RefusedError when the queue is full.
        """
        self.check(request)
        ticket = Ticket(request, on_event, is_cancelled, self._model.vocab, self._clock())
        with self._wake:
            if self._closing:
                raise RefusedError("the executor is closed; it takes no more requests")
            if request.request_id in self._by_id:
                raise BadInputError(
                    f"request_id {request.request_id!r} is in use by a request that has not "
                    "finished; choose another"
                )
            if self._queue and len(self._queue) + request.sequences > self._max_queue_size:
                raise RefusedError(
                    f"{len(self._queue)} requests are waiting, as many as max_queue_size allows; "
                    "try again later"
                )
            self._by_id[request.request_id] = ticket
            self._queue.extend(ticket.flights)
            self._wake.notify_all()

    def cancel(self, request_id: str) -> None:
        """End a request before the next step; one that is unknown or finished is no error."""
        with self._wake:
            ticket = self._by_id.get(request_id)
        if ticket is not None:
            ticket.cancelled = True

    def step(self) -> bool:
        """Run one step and send its events; False when no request needed one."""
        now = self._clock()
        self._interrupt(now)
        self._admit(now)
        self._prefilling = [f for f in self._prefilling if f.prefilling and not f.finished]
        generating = [flight for flight in self._slots if flight and not flight.prefilling]
        flights, batch = pack(generating, self._prefilling, self._max_tokens_per_step)
        if not flights:
            return False
        self._steps += 1
        count = len(generating)
        self._packed = (count, len(flights) - count, len(batch.input_ids) - count)
        try:
            logits = self._model.step(batch)
        except Exception as error:
            log.exception("a step of %d sequences failed", len(flights))
            for flight in flights:
                self._fail(flight, f"the model failed: {error!r}")
            return True
        self._advance(flights, batch, logits)
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
                for ticket in self._outstanding():
                    self._finish_all(
                        ticket.flights, FinishReason.ERROR, f"the executor failed: {error!r}"
                    )

    def _outstanding(self) -> tuple[Ticket, ...]:
        with self._wake:
            return tuple(self._by_id.values())

    def _interrupt(self, now: float) -> None:
        """End the requests, queued ones too, that were cancelled or took too long."""
        for ticket in self._outstanding():
            try:
                reason = ticket.interruption(now)
            except Exception as error:
                self._fail(ticket.flights[0], f"is_cancelled raised {error!r}")
                continue
            if reason is not None:
                self._finish_all(ticket.flights, reason)

    def _admit(self, now: float) -> None:
        with self._wake:
            while self._queue and None in self._slots:
                flight = self._queue.popleft()
                flight.slot = self._slots.index(None)
                flight.scheduled = now
                self._slots[flight.slot] = flight
                self._prefilling.append(flight)

    def _advance(self, flights: list[InFlight], batch: StepBatch, logits: Floats) -> None:
        """Give each sequence that has its prompt behind it the token its logits call for."""
        logits = last_logits(flights, batch, logits)
        now = self._clock()
        for flight, length in zip(flights, batch.lengths.tolist(), strict=True):
            flight.computed += length
        for flight, token, row in zip(flights, self._choose(flights, logits), logits, strict=True):
            # The callback of an earlier row may have closed the executor.
            if flight.finished or flight.prefilling:
                continue
            try:
                if isinstance(token, Exception):
                    raise token
                if flight.drafts:
                    reason = _check_drafts(flight, now)
                else:
                    reason = flight.accept(token, row, now)
                if reason is None:
                    flight.send()
                else:
                    self._finish(flight, reason)
            except MinitronError as error:
                self._fail(flight, str(error))
            except Exception as error:
                log.exception("request %r failed", flight.request.request_id)
                self._fail(flight, repr(error))

    def _choose(self, flights: list[InFlight], logits: Floats) -> list[int | Exception]:
        """Return each sequence's next token, or what its choice raised; not of one with a draft.

        Sequences that need more than the largest logit are divided among the cores.
        """
        best = logits.argmax(axis=1)
        finite = np.isfinite(logits[np.arange(len(best)), best]).tolist()
        tokens: list[int | Exception] = best.tolist()
        rows = [
            n
            for n, (flight, is_number) in enumerate(zip(flights, finite, strict=True))
            if not (flight.prefilling or flight.drafts or (is_number and flight.sampler.plain))
        ]

        def choose(part: list[int]) -> None:
            """Choose the tokens of some rows; an error is its row's alone."""
            for n in part:
                try:
                    tokens[n] = flights[n].sampler.choose(logits[n], int(best[n]))
                except Exception as error:
                    tokens[n] = error

        parts = min(self._cores, len(rows) * logits.shape[1] // _WORTH_A_THREAD)
        if parts > 1:
            list(self._choosers.map(choose, [rows[part::parts] for part in range(parts)]))
        else:
            choose(rows)
        return tokens

    def _fail(self, flight: InFlight, error: str) -> None:
        """End a sequence by an error, and with it the others of its request."""
        self._finish_all(flight.ticket.flights, FinishReason.ERROR, error)

    def _finish_all(
        self, flights: Iterable[InFlight], reason: FinishReason, error: str | None = None
    ) -> None:
        for flight in flights:
            self._finish(flight, reason, error)

    def _finish(self, flight: InFlight, reason: FinishReason, error: str | None = None) -> None:
        """Free what a sequence holds, then send its last event; the second time does nothing."""
        ticket = flight.ticket
        with self._wake:
            if flight.finished:
                return
            flight.finished = True
            if all(other.finished for other in ticket.flights):
                del self._by_id[ticket.request.request_id]
            if flight.slot >= 0:
                self._slots[flight.slot] = None
            else:
                self._queue.remove(flight)
        try:
            flight.send(reason, error)
        except Exception:
            log.exception("the callback of request %r failed", flight.request.request_id)
