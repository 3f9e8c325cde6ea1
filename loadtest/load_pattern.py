"""When requests are sent: so many at a time, or at times of their own."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final

from minitron_trt.loadtest.workload import Question

POISSON: Final = "poisson"
CONSTANT: Final = "constant"
ARRIVAL_PATTERNS: Final = (POISSON, CONSTANT)


@dataclass(frozen=True, slots=True)
class LoadPattern:
    """A load: closed with `concurrency`, open with `request_rate`, a trace's own with neither.

    A closed loop sends the next request when an answer is complete; an open one whether answers
    come or not, by which a server that cannot keep up is found. It ends after `request_count`
    requests or `duration_s` seconds, whichever comes first; the answers under way are waited for.
    """

    concurrency: int | None = None
    request_rate: float | None = None
    arrival: str = POISSON
    request_count: int | None = None
    duration_s: float | None = None

    @property
    def label(self) -> str:
        """Return it in a few words."""
        if self.concurrency is not None:
            return f"concurrency {self.concurrency}"
        if self.request_rate is not None:
            return f"{self.request_rate:g} requests/s, {self.arrival}"
        return "fixed schedule"

    @property
    def is_open(self) -> bool:
        """Say whether requests are sent whether answers come or not."""
        return self.concurrency is None

    def arrivals_s(self, questions: Sequence[Question], seed: int) -> Iterator[float]:
        """Yield when each request of an open loop is due, in seconds from the start."""
        if self.request_rate is None:
            yield from (question.at_s or 0.0 for question in questions)
        elif self.arrival == CONSTANT:
            yield from (index / self.request_rate for index in count())
        else:
            # Of a generator of its own: prompts and lengths are the same under every load.
            chance, at_s = random.Random(f"arrivals {seed}"), 0.0
            while True:
                yield at_s
                at_s += chance.expovariate(self.request_rate)
