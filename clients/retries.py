"""Which failures are worth another try, and when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from minitron_trt.clients.deadlines import Deadlines
from minitron_trt.errors import ServerError, UsageError

_FIRST_S: Final = 0.25
_LONGEST_S: Final = 4.0


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a request is sent again before its first token.

    What is sent again is a request whose connection failed or was lost, or that a busy server
    turned down: nobody has seen a word of its answer, and generating has no effect on the server.
    What is refused for its content, what takes too long and what is no answer is not.
    """

    most: int = 2

    def __post_init__(self) -> None:
        if isinstance(self.most, bool) or not isinstance(self.most, int) or self.most < 0:
            raise UsageError(f"max_retries is {self.most!r}; expected 0 or more")

    def delay_s(self, error: ServerError, done: int, deadlines: Deadlines) -> float | None:
        """Return how long to wait before the next try; None when the error is the answer."""
        if not error.is_passing or done >= self.most or deadlines.cancelled:
            return None
        # Loaded only here: it takes longer than all of this package.
        from random import uniform

        # Clients that lost one server come back at different moments.
        delay_s = min(_FIRST_S * 2**done, _LONGEST_S) * uniform(0.5, 1.0)
        return delay_s if delay_s < deadlines.total_s else None
