"""How far a model's next-token probabilities are from a baseline's: llama.cpp's list of figures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from minitron_trt.evaluate.perplexity import Estimate, mean
from minitron_trt.quantization.number_formats import Array

_LEAST_LOG_PROBABILITY: Final = -16.0  # llama.cpp leaves out what the baseline thinks rarer
DIVERGENCE_PERCENTILES: Final = (99.9, 99.0, 95.0, 90.0, 50.0, 10.0, 5.0, 1.0, 0.1)
CHANGE_PERCENTILES: Final = (99.9, 99.0, 95.0, 90.0, 75.0, 50.0, 25.0, 10.0, 5.0, 1.0, 0.1)


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What a model says of each scored token, beside the baseline; arrays of one length."""

    nll: Array
    divergence: Array  # Kullback-Leibler, of the model's distribution from the baseline's
    same_top: NDArray[np.bool_]


def compare(log_probabilities: Array, baseline: Array, targets: NDArray[np.int32]) -> TokenScores:
    """Return the scores of a chunk's rows, of log-probabilities [rows, vocab]."""
    rows = np.arange(len(targets))
    heard = baseline > _LEAST_LOG_PROBABILITY
    terms = np.exp(baseline) * (baseline - log_probabilities)
    return TokenScores(
        nll=-log_probabilities[rows, targets],
        divergence=np.where(heard, terms, 0.0).sum(axis=1),
        same_top=log_probabilities.argmax(axis=1) == baseline.argmax(axis=1),
    )


@dataclass(frozen=True, slots=True)
class Divergence:
    """The figures that llama-perplexity --kl-divergence prints; shares are of 1."""

    mean: Estimate
    maximum: float
    minimum: float
    percentiles: dict[float, float]
    log_ratio: Estimate  # ln(perplexity / the baseline's)
    same_top: Estimate
    change: Estimate
    change_rms: Estimate
    change_percentiles: dict[float, float]

    @classmethod
    def of(cls, scores: TokenScores, baseline_nll: Array) -> Divergence:
        """Return the figures of all scored tokens."""
        same = float(scores.same_top.mean())
        change = np.exp(-scores.nll) - np.exp(-baseline_nll)
        squares = mean(change**2)
        rms = math.sqrt(squares.value)
        return cls(
            mean=mean(scores.divergence),
            maximum=float(scores.divergence.max()),
            minimum=float(scores.divergence.min()),
            percentiles=_percentiles(scores.divergence, DIVERGENCE_PERCENTILES),
            log_ratio=_log_ratio(scores.nll, baseline_nll),
            same_top=Estimate(same, math.sqrt(same * (1 - same) / max(1, len(scores.nll) - 1))),
            change=mean(change),
            # A root's error is half of its square's, divided by it.
            change_rms=Estimate(rms, 0.5 / rms * squares.error if rms else 0.0),
            change_percentiles=_percentiles(change, CHANGE_PERCENTILES),
        )


def _percentiles(values: Array, percents: tuple[float, ...]) -> dict[float, float]:
    """Return percentiles between the nearest two values, as numpy and llama.cpp take them."""
    return dict(zip(percents, map(float, np.percentile(values, percents)), strict=True))


def _log_ratio(nll: Array, baseline_nll: Array) -> Estimate:
    # The two models are scored by the same tokens, so that most of their spread is shared.
    own, base = mean(nll), mean(baseline_nll)
    product = float((nll * baseline_nll).mean())
    covariance = (product - own.value * base.value) / max(1, len(nll) - 1)
    variance = own.error**2 + base.error**2 - 2 * covariance
    return Estimate(own.value - base.value, math.sqrt(max(0.0, variance)))
