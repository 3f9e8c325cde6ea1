"""Choose the tokens of one step and lay them out as a batch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from minitron_trt.executor.inflight import InFlight
from minitron_trt.executor.step import Floats, Ints, StepBatch


def pack(
    generating: Sequence[InFlight], prefilling: Iterable[InFlight], max_tokens: int
) -> tuple[list[InFlight], StepBatch]:
    """Return one token of each generating sequence, then chunks of prompts up to `max_tokens`.

    Prompts go in order; of the last one that fits, a chunk is taken, and the next step goes on.
    """
    flights = list(generating)
    ids = [np.array([flight.last for flight in flights], dtype=np.int32)]
    positions = [np.array([flight.computed for flight in flights], dtype=np.int32)]
    lengths = [1] * len(flights)
    budget = max_tokens - len(flights)
    for flight in prefilling:
        start, stop = flight.computed, min(len(flight.prompt), flight.computed + budget)
        if start == stop:
            break
        flights.append(flight)
        ids.append(flight.prompt[start:stop])
        positions.append(np.arange(start, stop, dtype=np.int32))
        lengths.append(stop - start)
        budget -= stop - start
    batch = StepBatch(
        input_ids=np.concatenate(ids),
        positions=np.concatenate(positions),
        slots=np.array([flight.slot for flight in flights], dtype=np.int32),
        lengths=np.array(lengths, dtype=np.int32),
        # Those that generate want no more than their last; most steps have no others.
        logit_rows=_logit_rows(flights, lengths) if len(flights) > len(generating) else None,
    )
    return flights, batch


def _logit_rows(flights: Sequence[InFlight], lengths: Sequence[int]) -> Ints | None:
    """Name the tokens whose logits are wanted: those to keep, of others the last."""
    kept = [flight.kept(length) for flight, length in zip(flights, lengths, strict=True)]
    if not any(kept):
        return None
    rows: list[int] = []
    for stop, count in zip(itertools.accumulate(lengths), kept, strict=True):
        rows += range(stop - max(1, count), stop)
    return np.array(rows, dtype=np.int32)


def last_logits(flights: Sequence[InFlight], batch: StepBatch, logits: Floats) -> Floats:
    """Return the logits [S, vocab] of each sequence's last token; those to keep are kept."""
    if batch.logit_rows is None:
        return logits
    lasts: list[int] = []
    stop = 0
    for flight, length in zip(flights, batch.lengths.tolist(), strict=True):
        kept = flight.kept(length)
        start, stop = stop, stop + max(1, kept)
        if kept:
            flight.keep(logits[start:stop])
        lasts.append(stop - 1)
    return logits[lasts]
