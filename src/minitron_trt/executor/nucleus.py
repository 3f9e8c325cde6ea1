"""The nucleus of a row: the fewest tokens that have a share of all weight.

It is as exact as if all weights were computed in float64, but few are: the sum of the others is
taken in float32, whose error is bounded, and only where that leaves doubt in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from minitron_trt.executor.row_scores import Doubles, Ids, RowScores

# So many are sorted as fast as looked through.
_FEW: Final = 1024
# Tokens below a V-th of what the nucleus leaves, of V tokens, are together less than that, so none
# of them is in it. Most nuclei end well above and are first sought at such a multiple of it.
_MULTIPLES: Final = (64, 16, 4, 1, 0)
# Tokens that are looked at one by one only if their sum is large enough for one of them.
_GROUP: Final = 8
# What float32 takes from a sum of powers, as shares of it: the power's own rounding and three of
# its exponent, which is above -24 / log(2) but for the faint; and those of the sum of a group. Of
# the faint, which are below e**-24 of the heaviest, it takes that much each.
_POWER_ERROR: Final = 5e-6
_SUM_ERROR: Final = 5e-7
_FAINT_ERROR: Final = 1e-15
# torch divides longer work among threads, which costs more than it gains where they are busy.
_PIECE: Final = 2**15


def nucleus(scores: RowScores, fraction: float, top: float) -> tuple[Ids, Doubles]:
    """Return the fewest tokens that have a fraction of all weight, heaviest first.

    A token's weight, which is returned with it, is e to its score less `top`; equal ones are
    ordered by id.
    """
    if scores.vocab <= _FEW:
        ids, weights = _by_weight(scores, np.arange(scores.vocab), top)
        end = np.searchsorted(weights.cumsum(), fraction * _exact_total(scores, top))
        return ids[: end + 1], weights[: end + 1]
    rough = _RoughWeights(scores, top)
    for multiple in _MULTIPLES:
        least = multiple * (1 - fraction) * rough.total / scores.vocab
        plain = rough.at_least(least)
        if multiple and rough.weight_of(plain) < fraction * rough.total:
            continue
        ids, weights = _by_weight(scores, plain, top)
        mass = weights.cumsum()
        for low, high in rough.bounds_of_total(plain, float(weights.sum()), least):
            end, last = np.searchsorted(mass, [fraction * low, fraction * high])
            if end == last:
                break
        # Beyond what was looked at may be equal ones that come before it.
        if end < len(ids) and weights[end] > least * (1 + 1e-4):
            break
    return ids[: end + 1], weights[: end + 1]


def _by_weight(scores: RowScores, plain: Ids, top: float) -> tuple[Ids, Doubles]:
    """Return some plain tokens and the special ones, heaviest first, and their weights."""
    ids, values = scores.with_special(plain)
    weights = np.exp(values - top)
    order = np.argsort(-weights, kind="stable")
    return ids[order], weights[order]


def _exact_total(scores: RowScores, top: float) -> float:
    return float(np.exp(scores.every() - top).sum())


class _RoughWeights:
    """The weights of a row's plain tokens, in float32 and as shares of the heaviest."""

    def __init__(self, scores: RowScores, top: float) -> None:
        self._scores, self._top = scores, top
        self._factor = math.exp(scores.peak / scores.divisor - top)
        self._powers = _powers(scores)
        whole = scores.vocab // _GROUP * _GROUP
        # Neighbours are in different groups, so that whole vectors are added.
        self._grid = self._powers[:whole].reshape(_GROUP, -1)
        self._rest = self._powers[whole:]
        self._sums = self._grid.sum(axis=0)
        self._sum = self._sum_of(self._sums)
        self._special = scores.special_weight(top)
        self.total = self._sum * self._factor + self._special

    def _sum_of(self, groups: npt.NDArray[np.float32]) -> float:
        return float(groups.sum(dtype=np.float64) + self._rest.sum(dtype=np.float64))

    def at_least(self, weight: float) -> Ids:
        """Return the ids of the tokens of about that weight or more, in order."""
        if not weight:
            return np.arange(self._scores.vocab)
        power = np.float32(min(weight / self._factor, 2.0) if self._factor else 2.0)
        near = np.flatnonzero(self._sums >= power)
        if 4 * len(near) > len(self._sums):
            return np.flatnonzero(self._powers >= power)
        rows, found = np.divmod(
            np.flatnonzero(self._grid.take(near, axis=1) >= power), max(len(near), 1)
        )
        rest = np.flatnonzero(self._rest >= power) + self._grid.size
        return np.concatenate([rows * len(self._sums) + near[found], rest])

    def weight_of(self, ids: Ids) -> float:
        """Return about what plain tokens and all special ones weigh."""
        return float(self._powers[ids].sum(dtype=np.float64)) * self._factor + self._special

    def bounds_of_total(
        self, ids: Ids, weight: float, least: float
    ) -> Iterator[tuple[float, float]]:
        """Yield what all weights are at least and at most, closer each time and in the end equal.

        `ids` are all plain tokens of `least` and more; they and the special ones have `weight`.
        """
        slack = 1e-12 * weight + _FAINT_ERROR * self._scores.vocab
        known = float(self._powers[ids].sum(dtype=np.float64))
        others = max(self._sum - known, 0) * self._factor
        doubt = _POWER_ERROR * others + _SUM_ERROR * self._sum * self._factor + slack
        yield weight + others - doubt, weight + others + doubt
        # With more of them in float64, less is left to doubt.
        ids = self.at_least(least / 16)
        weight = float(np.exp(self._scores.with_special(ids)[1] - self._top).sum())
        kept = self._powers[ids]
        self._powers[ids] = 0
        others = self._sum_of(self._grid.sum(axis=0)) * self._factor
        self._powers[ids] = kept
        doubt = (_POWER_ERROR + _SUM_ERROR) * others + slack
        yield weight + others - doubt, weight + others + doubt
        total = _exact_total(self._scores, self._top)
        yield total, total


def _powers(scores: RowScores) -> npt.NDArray[np.float32]:
    """Return e to the difference of each plain score from the largest of them, 0 if none is."""
    if scores.peak == -math.inf:
        return np.zeros(scores.vocab, np.float32)
    # In float32 such a divisor has no reciprocal.
    plain: Any = scores.plain.astype(np.float64) if scores.divisor > 1e30 else scores.plain
    kind = plain.dtype.type
    with np.errstate(over="ignore"):
        exponents = plain - kind(scores.peak)
        exponents *= kind(math.log2(math.e) / scores.divisor)
        powers: npt.NDArray[np.float32] = exponents.astype(np.float32, copy=False)
    try:
        # In half of numpy's time; what computes logits has it loaded.
        import torch
    except ImportError:
        return np.exp2(powers, out=powers)
    for start in range(0, scores.vocab, _PIECE):
        torch.from_numpy(powers[start : start + _PIECE]).exp2_()
    return powers
