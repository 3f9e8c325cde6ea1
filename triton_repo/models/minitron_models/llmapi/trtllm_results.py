"""What is read of TensorRT-LLM's results, as types; its own need TensorRT-LLM to be imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class CompletionOutput(Protocol):
    """One continuation so far, or one beam; LLM changes it in place."""

    token_ids: Sequence[int]
    logprobs: Sequence[Any] | None
    """For each id a number, or a dict from ids to records with a `logprob`."""
    generation_logits: Any
    """A torch tensor [tokens, vocabulary]; of a stream those of the newest step alone."""
    finish_reason: str | None
    request_perf_metrics: Any


class RequestOutput(Protocol):
    """A request's continuations so far."""

    outputs: Sequence[CompletionOutput]
    finished: bool
    context_logits: Any
    """A torch tensor [tokens of the prompt, vocabulary], or None."""
