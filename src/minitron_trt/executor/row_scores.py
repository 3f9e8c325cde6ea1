"""The scores of one row of logits, computed only where a draw looks.

A vocabulary has 128,256 tokens and more, of which a draw needs some hundred, so whole rows are only
compared, and in their own float32. The scores that are given are as exact as if all were computed
in float64.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Ids = npt.NDArray[np.intp]


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
        self._logits, self.divisor = logits, divisor
        self._special, self._special_scores = special, special_scores
        self.vocab = len(logits)
        if best is None or best in special:
            best = int(self.plain.argmax())
            self.peak = float(self.plain[best])
        else:
            self.peak = float(logits[best])
        self._token = best

    @functools.cached_property
    def plain(self) -> npt.NDArray[Any]:
        """The logits [vocab], minus infinity where a token is special; `peak` is the largest."""
        if not len(self._special):
            return self._logits
        plain = self._logits.copy()
        plain[self._special] = -math.inf
        return plain

    def best(self) -> tuple[int, float]:
        """Return the id of the largest score, the first of equal ones, and the score; NaN is it."""
        token, score = self._token, self.peak / self.divisor
        if len(self._special) and not math.isnan(score):
            at = int(self._special_scores.argmax())
            special, other = int(self._special[at]), float(self._special_scores[at])
            if math.isnan(other) or (-other, special) < (-score, token):
                return special, other
        return token, score

    def every(self) -> Doubles:
        """Return all scores [vocab]."""
        scores = self.plain.astype(np.float64) / self.divisor
        scores[self._special] = self._special_scores
        return np.asarray(scores)

    def largest(self, count: int) -> tuple[Ids, Doubles]:
        """Return the largest scores and their ids, largest first, equal ones by id.

        There are `count`, or fewer if fewer can be drawn.
        """
        peaks = np.concatenate([self._group_maxima(count), self._special_scores])
        # Of groups and special tokens, `count` have a maximum of at least this.
        least = np.partition(peaks, -count)[-count] if count < len(peaks) else -math.inf
        ids, scores = self.with_special(np.flatnonzero(self.plain >= self._logit_below(least)))
        drawable = scores >= least
        ids, scores = ids[drawable], scores[drawable]
        order = np.argsort(-scores, kind="stable")[:count]
        return ids[order], scores[order]

    def special_weight(self, top: float) -> float:
        """Return the sum of e to each special token's score less `top`."""
        return float(np.exp(self._special_scores - top).sum()) if len(self._special) else 0.0

    def with_special(self, ids: Ids) -> tuple[Ids, Doubles]:
        """Return some ids and those of all special tokens, that can be drawn, and their scores.

        Both are sorted by id.
        """
        scores = self.plain[ids].astype(np.float64) / self.divisor
        if len(self._special):
            # Those among the plain ones are there as minus infinity.
            ids = np.concatenate([ids, self._special])
            scores = np.concatenate([scores, self._special_scores])
            order = np.argsort(ids, kind="stable")
            ids, scores = ids[order], scores[order]
        drawable = scores > -math.inf
        return (ids, scores) if drawable.all() else (ids[drawable], scores[drawable])

    def _group_maxima(self, count: int) -> Doubles:
        """Return the largest scores of groups, of which there are some times `count` or a row."""
        size = max(len(self.plain) // (4 * count), 1)
        whole = len(self.plain) // size * size
        # Neighbours are in different groups, so that whole vectors are compared.
        maxima = self.plain[:whole].reshape(size, -1).max(axis=0)
        return np.asarray(maxima.astype(np.float64) / self.divisor)

    def _logit_below(self, score: float) -> Any:
        """Return a logit that is not above any whose score is at least this."""
        kind = self.plain.dtype.type
        with np.errstate(over="ignore"):
            return np.nextafter(np.nextafter(kind(score * self.divisor), kind(-math.inf)), -np.inf)
