"""Choose the tokens of one step and lay them out as a batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from minitron_trt.executor.inflight import InFlight
from minitron_trt.executor.step import StepBatch


def pack(
    generating: Sequence[InFlight], prefilling: Iterable[InFlight], max_tokens: int
) -> tuple[list[InFlight], StepBatch]:
    """Return one token of each generating sequence, then chunks of prompts up to `max_tokens`.

    Prompts go in the order given; the last one that fits is cut and goes on in the next step.
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
    )
    return flights, batch
