"""Perplexity as llama.cpp defines it, so that figures compare with those that are published.

The text is tokenized once and cut into disjoint chunks of the context; what is left at the end is
dropped. Where the vocabulary begins a text with a token, that takes the place of each chunk's
first. Of a chunk the tokens after the first half are scored, so that each has a context: 255 of
512. Perplexity is e to the mean of their negative log-likelihoods.

With a stride, as of its --ppl-stride, chunks overlap: each begins a stride after the one before,
and the last tokens of it are scored, as many as the stride. Nothing takes the place of their first
tokens there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minitron_trt.errors import BadInputError, UsageError
from minitron_trt.quantization.number_formats import Array


@dataclass(frozen=True, slots=True)
class TextChunk:
    """The tokens that a model is given, and those that it is scored by."""

    inputs: NDArray[np.int32]  # [context]
    targets: NDArray[np.int32]  # [scored]: what follows the rows of logits

    @property
    def first_row(self) -> int:
        """Return the first token whose logits are scored; those of the last token are not."""
        return len(self.inputs) - 1 - len(self.targets)


def chunks_of(
    tokens: Sequence[int],
    context: int,
    *,
    begin: int | None,
    stride: int | None = None,
    at_most: int | None = None,
) -> tuple[TextChunk, ...]:
    """Cut a text's tokens; `begin` takes the place of each chunk's first token.

    UsageError for a context or a stride by which nothing is scored, BadInputError for a text that
    is shorter than two chunks, or than a stride beyond one, which llama.cpp refuses as well.
    """
    if context < 4:
        raise UsageError(f"the context is {context}; expected at least 4 tokens")
    if stride is not None and not 1 <= stride < context:
        raise UsageError(
            f"the stride is {stride}; expected 1 to {context - 1}, less than the context"
        )
    least = 2 * context if stride is None else context + 1
    if len(tokens) < least:
        raise BadInputError(
            f"the text has {len(tokens)} tokens; a context of {context} needs at least "
            f"{least}: take a longer text or a shorter context"
        )
    step = context if stride is None else stride
    # Of overlapping chunks llama.cpp leaves out one that would end with the text.
    last = len(tokens) - context - (stride is not None)
    starts = range(0, last + 1, step)[:at_most]
    scored = context - 1 - context // 2 if stride is None else stride
    ids = np.array(tokens, np.int32)
    return tuple(
        _chunk(ids[start : start + context], scored, begin if stride is None else None)
        for start in starts
    )


def _chunk(ids: NDArray[np.int32], scored: int, begin: int | None) -> TextChunk:
    inputs = ids.copy()
    if begin is not None:
        inputs[0] = begin
    return TextChunk(inputs, ids[-scored:])


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its standard error."""

    value: float
    error: float


def log_likelihoods(logits: Array) -> Array:
    """Return the logarithms of the probabilities, in float64 [rows, vocab].

    BadInputError where a logit is NaN or no number is left to compare.
    """
    exact = logits.astype(np.float64)
    largest = exact.max(axis=1, keepdims=True)
    if not np.isfinite(largest).all():
        raise BadInputError("the model's logits are NaN or infinite; its weights are damaged")
    exact -= largest
    return np.asarray(exact - np.log(np.exp(exact).sum(axis=1, keepdims=True)))


def mean(values: Array) -> Estimate:
    """Return the mean of samples and its standard error."""
    # As llama-perplexity has it: the spread of the population, divided by one sample less.
    value = float(values.mean())
    spread = float((values**2).mean()) - value**2
    error = math.sqrt(spread / (len(values) - 1)) if spread > 0 and len(values) > 1 else 0.0
    return Estimate(value, error)


def perplexity(nll: Array) -> Estimate:
    """Return e to the mean of negative log-likelihoods, with the error that it takes from them."""
    average = mean(nll)
    value = math.exp(average.value)
    return Estimate(value, value * average.error)
