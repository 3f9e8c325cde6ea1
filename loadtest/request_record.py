"""What one request of a load test was seen to do, on a clock of nanoseconds."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from minitron_trt.errors import ProtocolError, ServerError

Clock: TypeAlias = Callable[[], int]
"""Return nanoseconds that only grow."""


@dataclass(slots=True)
class RequestRecord:
    """The moments of a request.

    `due_ns` is when the load wanted it to be sent, `start_ns` when it was, `pieces_ns` when each
    piece of text came, `end_ns` when the answer was complete or failed, 0 while it is under way.
    `texts` keeps the pieces where a list is given to be filled.
    """

    index: int
    due_ns: int
    clock: Clock = field(default=time.perf_counter_ns, repr=False)
    start_ns: int = 0
    end_ns: int = 0
    # Eight bytes a token: loads have millions of them.
    pieces_ns: array[int] = field(default_factory=lambda: array("q"))
    input_tokens: int | None = None
    counted_tokens: int | None = None
    tokens_at_first: int | None = None
    texts: list[str] | None = field(default=None, repr=False)
    error: ServerError | None = None

    def begin(self) -> None:
        """Note that the request is about to be sent."""
        self.start_ns = self.clock()

    def piece(self, text: str, tokens: int | None = None) -> None:
        """Note a piece of the answer, which may have no text, and the tokens in it, if told."""
        if tokens is not None:
            self.counted_tokens = (self.counted_tokens or 0) + tokens
        if not text:
            return
        if not self.pieces_ns:
            self.tokens_at_first = self.counted_tokens
        self.pieces_ns.append(self.clock())
        if self.texts is not None:
            self.texts.append(text)

    def end(self, error: ServerError | None = None) -> None:
        """Note that the answer is complete, or what it failed with; without text it failed, too."""
        if error is None and not self.pieces_ns:
            error = ProtocolError("the answer has no text")
        self.error = error
        self.end_ns = self.clock()

    @property
    def is_done(self) -> bool:
        """Say whether the request ended by itself."""
        return self.end_ns > 0

    @property
    def is_valid(self) -> bool:
        """Say whether an answer came, whole."""
        return self.is_done and self.error is None

    @property
    def output_tokens(self) -> int:
        """Return the tokens of the answer; where the server does not count, its pieces."""
        return self.counted_tokens if self.counted_tokens is not None else len(self.pieces_ns)

    @property
    def latency_ns(self) -> int:
        """Return the time from the start to the last piece."""
        return self.pieces_ns[-1] - self.start_ns

    @property
    def first_ns(self) -> int:
        """Return the time from the start to the first piece."""
        return self.pieces_ns[0] - self.start_ns
