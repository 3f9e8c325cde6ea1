"""What goes into the executor and what comes out: a request, and events about it."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from minitron_trt.errors import BadInputError
from minitron_trt.executor.sampling import Sampling
from minitron_trt.executor.step import Floats, StepModel


class FinishReason(enum.Enum):
    """Why a sequence came to its end."""

    END_ID = "end_id"
    STOP_WORDS = "stop_words"
    LENGTH = "length"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    ERROR = "error"


class Timing(NamedTuple):
    """When a sequence passed each station, in seconds of the executor's clock; None: it did not."""

    arrival_s: float
    first_scheduled_s: float | None
    first_token_s: float | None
    last_token_s: float | None


class Event(NamedTuple):
    """News of a sequence: tokens that are final, and in the last event why there are no more.

    `log_probs` and the rows of `generation_logits` [k, vocab] go with `tokens` one to one;
    `context_logits` [prompt, vocab] come once, with the first event of sequence 0. All are there
    only where the request wants them, `timing` too, as far as it is known. `accepted_drafts` counts
    those of `tokens` that the request's draft had proposed.
    """

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...] = ()
    finish_reason: FinishReason | None = None
    error: str | None = None
    sequence: int = 0
    generation_logits: Floats | None = None
    context_logits: Floats | None = None
    timing: Timing | None = None
    accepted_drafts: int = 0


OnEvent = Callable[[Event], None]
"""Receive the events of one request, on the executor's thread."""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to continue, `sequences` times; the time-out counts from when it is submitted.

    Sequence i draws with seed + i, so greedy ones are all alike. `draft` is how another model
    continues the prompt: as far as the answer would have begun so, it is computed in one step.
    """

    request_id: str
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    timeout_s: float | None = None
    sequences: int = 1
    context_logits: bool = False
    generation_logits: bool = False
    timing: bool = False
    draft: tuple[int, ...] = ()

    def check(self, model: StepModel) -> None:
        """Raise BadInputError, naming the field, when this model cannot run the request."""
        if not self.prompt:
            raise BadInputError("input_ids is empty; expected at least one token id")
        if self.max_tokens < 1:
            raise BadInputError(f"max_tokens is {self.max_tokens}; expected at least 1")
        if self.sequences < 1:
            raise BadInputError(f"num_return_sequences is {self.sequences}; expected at least 1")
        if self.timeout_s is not None and not 0 < self.timeout_s < math.inf:
            raise BadInputError(f"timeout_s is {self.timeout_s}; expected a number above 0")
        if len(self.draft) >= self.max_tokens and self.draft:
            raise BadInputError(
                f"draft_input_ids has {len(self.draft)} tokens and max_tokens is "
                f"{self.max_tokens}; expected at least one more than the draft"
            )
        if self.draft and self.context_logits:
            raise BadInputError("context logits cannot be returned with draft_input_ids")
        total = len(self.prompt) + self.max_tokens
        if total > model.max_seq_len:
            raise BadInputError(
                f"input_ids has {len(self.prompt)} tokens and max_tokens is {self.max_tokens}, "
                f"together {total}; this model holds max_seq_len {model.max_seq_len}: shorten the "
                "prompt or lower max_tokens"
            )
        _check_ids("input_ids", self.prompt, model.vocab)
        _check_ids("draft_input_ids", self.draft, model.vocab)
        bias = self.sampling.embedding_bias
        if bias is not None and bias.shape != (model.vocab,):
            raise BadInputError(
                f"embedding_bias has {bias.size} values; expected one for each of the model's "
                f"{model.vocab} token ids"
            )


def _check_ids(name: str, ids: tuple[int, ...], vocab: int) -> None:
    if ids and (min(ids) < 0 or max(ids) >= vocab):
        index, token = next((i, token) for i, token in enumerate(ids) if not 0 <= token < vocab)
        raise BadInputError(
            f"{name}[{index}] is {token}; expected a token id from 0 to {vocab - 1}"
        )
