"""What goes into the executor and what comes out: a request, and events about it."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from minitron_trt.errors import BadInputError
from minitron_trt.executor.sampling import Sampling
from minitron_trt.executor.step import StepModel


class FinishReason(enum.Enum):
    """Why a request came to its end."""

    END_ID = "end_id"
    STOP_WORDS = "stop_words"
    LENGTH = "length"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Event:
    """News of a request: tokens that are final, and in the last event why there are no more.

    `log_probs` go with `tokens` one to one where they were asked for and are empty otherwise.
    """

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...] = ()
    finish_reason: FinishReason | None = None
    error: str | None = None


OnEvent = Callable[[Event], None]
"""Receive the events of one request, on the executor's thread."""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to continue; the time-out counts from when it is submitted."""

    request_id: str
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    timeout_s: float | None = None

    def check(self, model: StepModel) -> None:
        """Raise BadInputError, naming the field, when this model cannot run the request."""
        if not self.prompt:
            raise BadInputError("input_ids is empty; expected at least one token id")
        if self.max_tokens < 1:
            raise BadInputError(f"max_tokens is {self.max_tokens}; expected at least 1")
        if self.timeout_s is not None and not 0 < self.timeout_s < math.inf:
            raise BadInputError(f"timeout_s is {self.timeout_s}; expected a number above 0")
        total = len(self.prompt) + self.max_tokens
        if total > model.max_seq_len:
            raise BadInputError(
                f"input_ids has {len(self.prompt)} tokens and max_tokens is {self.max_tokens}, "
                f"together {total}; this model holds max_seq_len {model.max_seq_len}: shorten the "
                "prompt or lower max_tokens"
            )
        if min(self.prompt) < 0 or max(self.prompt) >= model.vocab:
            index, token = next(
                (i, token) for i, token in enumerate(self.prompt) if not 0 <= token < model.vocab
            )
            raise BadInputError(
                f"input_ids[{index}] is {token}; expected a token id from 0 to {model.vocab - 1}"
            )
