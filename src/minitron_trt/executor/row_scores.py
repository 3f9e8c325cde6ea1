"""The scores of one row of logits, computed only where a draw looks.

A vocabulary has 128,256 tokens and more, of which a draw needs some hundred, so whole rows are only
compared, and in their own float32. Scores, their order and their sums are as exact as if all were
computed in float64: where the sum of the rest decides, bounds of it are enough, unless they
disagree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Ids = npt.NDArray[np.intp]

# A nucleus is first sought among so many tokens, then among four times as many, or at once among
# very many where these have little of the weight.
_SMALL_NUCLEUS: Final = 1024
_LITTLE: Final = 0.25
# What float32 takes from a sum of exponentials: 3 roundings of an argument above -87, and its own.
_SUM_ERROR: Final = 2e-5


class RowScores:
    """A row's logits, each divided by one number; special tokens have scores of their own."""

    def __init__(
        self,
        logits: npt.NDArray[Any],
        divisor: float,
        special: Ids,
        special_scores: Doubles,
        best: int | None = None,
    ) -> None:
        """Take a row of float32 or float64 [vocab], which stays as it is; special ids are sorted.

        A score of minus infinity is a token that cannot be drawn. `best` is the id of the largest
        logit, where it is known.
        """
        self._divisor = divisor
        self._special, self._special_scores = special, special_scores
        if len(special):
            logits = logits.copy()
            logits[special] = -math.inf
            best = None if best in special else best
        self._plain = logits
        self._token = int(logits.argmax()) if best is None else best
        self.vocab = len(logits)

    def best(self) -> tuple[int, float]:
        """Return the id of the largest score, the first of equal ones, and the score; NaN is it."""
        token, score = self._token, float(self._plain[self._token]) / self._divisor
        if len(self._special) and not math.isnan(score):
            at = int(self._special_scores.argmax())
            special, other = int(self._special[at]), float(self._special_scores[at])
            if math.isnan(other) or (-other, special) < (-score, token):
                return special, other
        return token, score

    def every(self) -> Doubles:
        """Return all scores [vocab]."""
        scores = self._plain.astype(np.float64) / self._divisor
        scores[self._special] = self._special_scores
        return np.asarray(scores)

    def largest(self, count: int) -> tuple[Ids, Doubles]:
        """Return the largest scores and their ids, largest first, equal ones by id.

        There are `count`, or fewer if fewer can be drawn.
        """
        peaks = np.concatenate([self._group_maxima(count), self._special_scores])
        # Of groups and special tokens, `count` have a maximum of at least this.
        least = np.partition(peaks, -count)[-count] if count < len(peaks) else -math.inf
        ids: Ids = np.flatnonzero(self._plain >= self._logit_below(least))
        scores = self._plain[ids].astype(np.float64) / self._divisor
        if len(self._special):
            # Those among the plain ones are there as minus infinity.
            ids = np.concatenate([ids, self._special])
            scores = np.concatenate([scores, self._special_scores])
            order = np.argsort(ids, kind="stable")
            ids, scores = ids[order], scores[order]
        drawable = (scores >= least) & (scores > -math.inf)
        ids, scores = ids[drawable], scores[drawable]
        order = np.argsort(-scores, kind="stable")[:count]
        return ids[order], scores[order]

    def nucleus(self, fraction: float, top: float) -> tuple[Ids, Doubles]:
        """Return the fewest tokens that have a fraction of all weight, heaviest first.

        A token's weight, which is returned with it, is e to its score less `top`.
        """
        count, totals = _SMALL_NUCLEUS, _Totals(self, top)
        while True:
            ids, scores = self.largest(count)
            weights = np.exp(scores - top)
            # Scores that differ may have weights that do not.
            if ((weights[1:] == weights[:-1]) & (scores[1:] != scores[:-1])).any():
                order = np.lexsort((ids, -weights))
                ids, weights = ids[order], weights[order]
            mass = weights.cumsum()
            for low, high in totals.bounds(ids, weights):
                end, last = np.searchsorted(mass, [fraction * low, fraction * high])
                # Beyond the last of these may be equal ones that come before it.
                inside = last < len(ids) and weights[last] > weights[-1]
                if end == last and (inside or len(ids) < count):
                    return ids[: end + 1], weights[: end + 1]
                if end == len(ids):
                    break
            count *= 4 if mass[-1] > _LITTLE * fraction * low else 1024

    def _group_maxima(self, count: int) -> Doubles:
        """Return the largest scores of groups, of which there are some times `count` or a row."""
        size = max(len(self._plain) // (4 * count), 1)
        whole = len(self._plain) // size * size
        # Neighbours are in different groups, so that whole vectors are compared.
        maxima = self._plain[:whole].reshape(size, -1).max(axis=0)
        return np.asarray(maxima.astype(np.float64) / self._divisor)

    def _logit_below(self, score: float) -> Any:
        """Return a logit that is not above any whose score is at least this."""
        kind = self._plain.dtype.type
        with np.errstate(over="ignore"):
            return np.nextafter(np.nextafter(kind(score * self._divisor), kind(-math.inf)), -np.inf)

    def known_weight(self, ids: Ids, weights: Doubles, top: float) -> float:
        """Return the sum of the weights of these ids and of all special tokens."""
        plain = self._plain[ids] > -math.inf
        return float(weights[plain].sum() + np.exp(self._special_scores - top).sum())

    def other_weight(self, ids: Ids, top: float) -> float:
        """Return the sum of the other weights, within _SUM_ERROR of it."""
        peak = self._plain[self._token]
        if peak == -math.inf:
            return 0.0
        powers = self._plain - peak
        if self._divisor != 1:
            powers *= self._plain.dtype.type(1 / self._divisor)
        np.exp(powers, out=powers)
        powers[ids] = 0
        return float(powers.sum()) * math.exp(float(peak) / self._divisor - top)


class _Totals:
    """What the sum of all weights of a row is at least and at most, as close as it must be."""

    def __init__(self, scores: RowScores, top: float) -> None:
        self._scores, self._top = scores, top
        self._found: list[tuple[float, float]] = []

    def bounds(self, ids: Ids, weights: Doubles) -> Iterator[tuple[float, float]]:
        """Yield bounds, closer each time and in the end equal; `ids` are the largest scores'."""
        known = self._scores.known_weight(ids, weights, self._top)
        slack = 1e-12 * known
        if not self._found:
            others = (self._scores.vocab - len(ids)) * float(weights[-1])
            yield known - slack, known + slack + others
            rest = self._scores.other_weight(ids, self._top)
            doubt = _SUM_ERROR * rest + slack
            self._found.append((known + rest - doubt, known + rest + doubt))
        yield self._found[-1]
        if len(self._found) == 1:
            total = float(np.exp(self._scores.every() - self._top).sum())
            self._found.append((total, total))
            yield self._found[-1]
