"""The limits of one request in time, and its end from another thread."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

from minitron_trt.clients.endpoint import Timeouts
from minitron_trt.clients.faults import Fault

# The clocks of gRPC and of asyncio may ring a little before this one.
_EARLY_S: Final = 0.05


class Deadlines:
    """Until when a request may wait for what comes next, on the monotonic clock.

    The caller says what is waited for (`connecting`, `asked`, `waiting`) and when something came
    (`answered`). `cancel` ends the request from any thread.
    """

    def __init__(self, timeouts: Timeouts) -> None:
        self.timeouts = timeouts
        # Asked for every token: without such limits no clock is read then.
        self.has_token_limits = not (timeouts.first_token_s is timeouts.between_tokens_s is None)
        self.cancelled = False
        self._cut: Callable[[], object] | None = None
        self._end = self._until = math.inf
        self._fault = Fault.SLOW

    def begin(self) -> None:
        """Start the clock of the whole answer."""
        if not self.cancelled:
            self._end = self._until = time.monotonic() + self.timeouts.total_s

    def connecting(self) -> None:
        """Begin to look for a server."""
        self._until = min(self._end, time.monotonic() + self.timeouts.connect_s)
        self._fault = Fault.SILENT

    def asked(self) -> None:
        """Begin to wait for the first token."""
        # Whether there is a limit or not: that of `connecting` ends here.
        self._wait(self.timeouts.first_token_s, Fault.LATE_FIRST)

    def answered(self) -> None:
        """Stop the clock of the next token: the reader of this one may take its time."""
        if self.has_token_limits:
            self._wait(None, Fault.SLOW)

    def waiting(self) -> None:
        """Begin to wait for the next token."""
        if self.has_token_limits:
            self._wait(self.timeouts.between_tokens_s, Fault.LATE_NEXT)

    def _wait(self, seconds: float | None, fault: Fault) -> None:
        until = math.inf if seconds is None else time.monotonic() + seconds
        self._until, self._fault = (until, fault) if until < self._end else (self._end, Fault.SLOW)

    @property
    def remaining_s(self) -> float:
        """Return how long to wait now; 0 once the time is up."""
        return max(0.0, self._until - time.monotonic())

    @property
    def total_s(self) -> float:
        """Return what is left for the whole answer; 0 once the time is up."""
        return max(0.0, self._end - time.monotonic())

    @property
    def check_s(self) -> float:
        """Return the seconds before which no limit can pass, not even one that has yet to begin."""
        between_s = self.timeouts.between_tokens_s
        left = self.remaining_s
        return left if between_s is None else min(left, between_s)

    @property
    def passed(self) -> bool:
        """Say whether the time for what is waited for is up."""
        return self.remaining_s == 0.0

    @property
    def fault(self) -> Fault | None:
        """Return why a request ends now that has no other reason: a limit, or `cancel`."""
        if self.cancelled:
            return Fault.CANCELLED
        return self._fault if self.remaining_s < _EARLY_S else None

    def ends_by(self, cut: Callable[[], object]) -> None:
        """Name what makes a thread go on that waits for the answer: `cancel` calls it."""
        self._cut = cut
        # `cancel` sets its flag before it looks for a cut: one of the two threads sees the other.
        if self.cancelled:
            cut()

    def cancel(self) -> None:
        """End the request, also one that another thread waits in."""
        self.cancelled = True
        self._until = self._end = 0.0
        if self._cut is not None:
            self._cut()
