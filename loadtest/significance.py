"""How sure a figure is, and whether two differ.

The unit is the run: requests of one run wait for each other, so that their number says little of
what the next run will give. So intervals and tests are of runs, by Student's t, as aiperf's are.
Between two single runs there are only requests to compare: labels are exchanged among them, which
assumes no distribution, and tells these two runs apart, not the servers behind them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

CONFIDENCE: Final = 0.95
# Odd: Simpson's rule goes by pairs of steps between the points.
_STEPS: Final = 2_001
# The least p-value is then 0.001, and 0.011 after Holm's rule for eleven figures: enough for 95 %.
_EXCHANGES: Final = 1_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure over several runs, and where its mean is with 95 % confidence; aiperf's names."""

    mean: float
    std: float
    min: float
    max: float
    cv: float
    se: float
    ci_low: float
    ci_high: float
    t_critical: float

    def as_record(self, unit: str) -> dict[str, float | str]:
        """Return it as aiperf's aggregate has it."""
        return {**asdict(self), "unit": unit}


def interval(values: Sequence[float]) -> Interval:
    """Return the interval of a figure over two or more runs."""
    runs = np.array(values, np.float64)
    mean, std = float(runs.mean()), float(runs.std(ddof=1))
    error = std / math.sqrt(len(runs))
    critical = t_quantile(1 - (1 - CONFIDENCE) / 2, len(runs) - 1)
    return Interval(
        mean=mean,
        std=std,
        min=float(runs.min()),
        max=float(runs.max()),
        cv=std / mean if mean else 0.0,
        se=error,
        ci_low=mean - critical * error,
        ci_high=mean + critical * error,
        t_critical=critical,
    )


def t_probability(t: float, freedom: float) -> float:
    """Return the probability that Student's t is at most `t`, to about 1e-9.

    The integral of the density, by Simpson's rule over x = tan(angle), where it is smooth and ends.
    """
    # scipy has it, and is in no extra that a load test needs; numpy is in the base.
    angles = np.linspace(0.0, math.atan(abs(t) / math.sqrt(freedom)), _STEPS)
    density = np.cos(angles) ** (freedom - 1)
    weights = np.ones(_STEPS)
    weights[1:-1:2], weights[2:-1:2] = 4.0, 2.0
    area = float((density * weights).sum()) * (angles[1] - angles[0]) / 3
    log_scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
    half = math.exp(log_scale) / math.sqrt(math.pi) * area
    return 0.5 + math.copysign(min(half, 0.5), t)


@cache
def t_quantile(probability: float, freedom: float) -> float:
    """Return the t above a half that is not passed with a probability."""
    low, high = 0.0, 1.0
    while t_probability(high, freedom) < probability:
        high *= 2
    # Halved so often, an interval is below the last digit of a double.
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if t_probability(middle, freedom) < probability else (low, middle)
        )
    return high


def welch(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the p-value that two figures over runs are equal, of variances that may differ."""
    parts = [float(np.var(side, ddof=1)) / len(side) for side in (a, b)]
    difference = float(np.mean(b)) - float(np.mean(a))
    if not sum(parts):
        return 0.0 if difference else 1.0
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(side) - 1) for part, side in zip(parts, (a, b), strict=True)
    )
    return 2 * (1 - t_probability(abs(difference) / math.sqrt(sum(parts)), freedom))


def exchanged(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    figure: Callable[[NDArray[np.float64]], float],
    seed: int = 0,
) -> float:
    """Return the p-value that a figure of two runs' requests is equal: a permutation test."""
    chance = np.random.default_rng(seed)
    together = np.concatenate([a, b])
    seen = abs(figure(b) - figure(a))
    as_far = 0
    for _ in range(_EXCHANGES):
        chance.shuffle(together)
        as_far += abs(figure(together[len(a) :]) - figure(together[: len(a)])) >= seen
    # What was seen is one of the exchanges, so that no p-value is 0.
    return (as_far + 1) / (_EXCHANGES + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values that hold for all of them together: Holm's, no smaller than before."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, so_far = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        so_far = max(so_far, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = so_far
    return adjusted
