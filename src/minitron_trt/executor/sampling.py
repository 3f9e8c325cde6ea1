"""From logits to tokens: what a request may ask for, and the sampler that does it.

The order: penalties, masks (bad words, min_tokens), temperature, top-k, top-p, min-p, and the draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from minitron_trt.errors import BadInputError, MinitronError
from minitron_trt.executor.step import Floats

Doubles = npt.NDArray[np.float64]
Ids = npt.NDArray[np.intp]

_RANGES: Final[tuple[tuple[str, Callable[[float], bool], str], ...]] = (
    # Comparisons are written so that NaN fails them.
    ("temperature", lambda x: 0 <= x < math.inf, "a number of at least 0"),
    ("top_k", lambda x: x >= 0, "0 (off) or more"),
    ("top_p", lambda x: 0 < x <= 1, "a number above 0 and at most 1"),
    ("min_p", lambda x: 0 <= x <= 1, "a number from 0 to 1"),
    ("repetition_penalty", lambda x: 0 < x < math.inf, "a number above 0"),
    ("presence_penalty", math.isfinite, "a finite number"),
    ("frequency_penalty", math.isfinite, "a finite number"),
    ("seed", lambda x: 0 <= x < 2**64, "a whole number from 0 to 2**64 - 1"),
    ("min_tokens", lambda x: x >= 0, "0 or more"),
)
# A nucleus this small is found without sorting the whole vocabulary, most of a draw's cost.
_SMALL_NUCLEUS: Final = 1024


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a request's tokens are chosen; None is "not asked for".

    Fields are called what the client's tensors are called, so an error names what the user wrote.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    min_tokens: int = 0
    end_ids: tuple[int, ...] = ()
    stop_words: tuple[tuple[int, ...], ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    log_probs: bool = False

    def __post_init__(self) -> None:
        for name, fits, expected in _RANGES:
            value = getattr(self, name)
            if value is not None and not fits(value):
                raise BadInputError(f"{name} is {value}; expected {expected}")
        for name in ("stop_words", "bad_words"):
            for index, word in enumerate(getattr(self, name)):
                if not word or min(word) < 0:
                    raise BadInputError(
                        f"{name}[{index}] is {list(word)}; expected one or more ids of 0 or more"
                    )

    @property
    def greedy(self) -> bool:
        """Return whether the best token is always taken; so too when nothing was asked for."""
        unset = self.temperature is None and self.top_k is None and self.top_p is None
        return self.temperature == 0 or self.top_k == 1 or unset

    @property
    def adjusts(self) -> bool:
        """Return whether the logits change, apart from min_tokens, before a token is chosen."""
        neutral = (1.0, 0.0, 0.0)
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return penalties != neutral or bool(self.bad_words)


class Sampler:
    """Chooses the tokens of one request, whatever else is in the batch.

    `choose` looks at the tokens accepted so far; the caller accepts each token it keeps.
    """

    def __init__(self, sampling: Sampling, prompt: Iterable[int], vocab: int) -> None:
        self._sampling = sampling
        self._generated: list[int] = []
        self._plain = sampling.greedy and not sampling.adjusts
        self._random = None if sampling.greedy else np.random.default_rng(sampling.seed)
        self._end_ids = [token for token in sampling.end_ids if 0 <= token < vocab]
        self._bad_words = [word for word in sampling.bad_words if word[-1] < vocab]
        self._counts = np.zeros(vocab) if sampling.adjusts else None
        self._seen = np.zeros(vocab, dtype=np.bool_) if sampling.adjusts else None
        if self._seen is not None:
            self._seen[list(prompt)] = True

    @property
    def plain(self) -> bool:
        """Return whether the next token is just the largest logit, as a whole batch can take it."""
        return self._plain and len(self._generated) >= self._sampling.min_tokens

    def accept(self, token: int) -> None:
        """Take note of a token that became part of the output."""
        self._generated.append(token)
        if self._counts is not None and self._seen is not None:
            self._counts[token] += 1
            self._seen[token] = True

    def choose(self, logits: Floats) -> int:
        """Return the next token for a row of logits; MinitronError when they are not numbers."""
        scores = self._adjusted(logits)
        best = int(scores.argmax())
        if not math.isfinite(scores[best]):
            raise MinitronError(f"the model's best logit is {scores[best]}; expected a number")
        return best if self._random is None else self._draw(scores, self._random)

    def _adjusted(self, logits: Floats) -> Doubles:
        sampling, scores = self._sampling, logits.astype(np.float64)
        if self._counts is not None and self._seen is not None:
            seen = scores[self._seen]
            factor = sampling.repetition_penalty
            scores[self._seen] = np.where(seen > 0, seen / factor, seen * factor)
            scores -= sampling.presence_penalty * (self._counts > 0)
            scores -= sampling.frequency_penalty * self._counts
        banned = [word[-1] for word in self._bad_words if self._follows(word[:-1])]
        if len(self._generated) < sampling.min_tokens:
            banned += self._end_ids
        scores[banned] = -math.inf
        return scores

    def _follows(self, start: tuple[int, ...]) -> bool:
        return not start or tuple(self._generated[-len(start) :]) == start

    def _draw(self, scores: Doubles, random: np.random.Generator) -> int:
        sampling = self._sampling
        temperature = 1.0 if sampling.temperature is None else sampling.temperature
        # Temperature keeps the order, so top-k may go first and leave fewer powers to compute.
        ids = _largest(scores, sampling.top_k) if sampling.top_k else np.arange(len(scores))
        # A tiny temperature sends all but the best to minus infinity, which is what it means.
        with np.errstate(over="ignore"):
            weights = np.exp((scores[ids] - scores.max()) / temperature)
        if sampling.top_p is not None and sampling.top_p < 1:
            kept = _nucleus(weights, sampling.top_p)
            ids, weights = ids[kept], weights[kept]
        if sampling.min_p:
            likely = weights >= sampling.min_p * weights.max()
            ids, weights = ids[likely], weights[likely]
        mass = weights.cumsum()
        at = np.searchsorted(mass, random.random() * mass[-1], side="right")
        # Rounding may land on the total itself, past which only banned tokens lie.
        return int(ids[min(at, np.searchsorted(mass, mass[-1]))])


def log_prob(logits: Floats, token: int) -> float:
    """Return the natural log of the probability that the model itself gives a token.

    That is before penalties, temperature and cuts, so it compares across requests.
    """
    shifted = logits - logits.max()
    return float(shifted[token] - np.log(np.exp(shifted).sum(dtype=np.float64)))


def _largest(weights: Doubles, count: int) -> Ids:
    """Return the ids of the largest weights, largest first, equal ones by id."""
    ids: Ids = np.arange(len(weights))
    if count < len(weights):
        # Of several blocks each, `count` have a maximum of at least this: nothing below it can be
        # among the largest, and a comparison is far cheaper than a partition of everything.
        size = max(len(weights) // (4 * count), 1)
        blocks = weights[: len(weights) // size * size].reshape(-1, size).max(axis=1)
        ids = np.flatnonzero(weights >= np.partition(blocks, -count)[-count])
    if count < len(ids):
        ids = np.sort(ids[np.argpartition(weights[ids], -count)[-count:]])
    return ids[np.argsort(-weights[ids], kind="stable")]


def _nucleus(weights: Doubles, share: float) -> Ids:
    """Return the ids of the fewest weights that make up a share of the sum, largest first."""
    wanted = share * weights.sum()
    count = _SMALL_NUCLEUS
    while True:
        ids = _largest(weights, count)
        mass = weights[ids].cumsum()
        if mass[-1] >= wanted or len(ids) == len(weights):
            return ids[: np.searchsorted(mass, wanted) + 1]
        count *= 16
