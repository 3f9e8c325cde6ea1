"""From logits to tokens: what a request may ask for, and the sampler that does it.

The order is TensorRT-LLM's: embedding bias, temperature, penalties, masks (min_tokens, bad words),
top-k, top-p, min-p, and the draw. Penalties and bad words see the prompt too, as there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from minitron_trt.errors import BadInputError, MinitronError
from minitron_trt.executor.nucleus import nucleus
from minitron_trt.executor.row_scores import Doubles, Ids, RowScores
from minitron_trt.executor.step import Floats

Counts = npt.NDArray[np.int64]

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
# Stands for 0 where logits are divided, so that penalties keep a meaning.
_SMALLEST_TEMPERATURE: Final = 1e-6
_NO_IDS: Final[Ids] = np.empty(0, np.intp)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a request's tokens are chosen; None leaves a step out.

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
    embedding_bias: Floats | None = field(default=None, compare=False, repr=False)  # [vocab]

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
        if self.embedding_bias is not None:
            # Minus infinity bans a token; NaN or infinity would spoil all of them.
            wrong = np.flatnonzero(~(self.embedding_bias < math.inf))
            if len(wrong):
                raise BadInputError(
                    f"embedding_bias[{wrong[0]}] is {self.embedding_bias[wrong[0]]}; expected "
                    "a number"
                )

    @property
    def greedy(self) -> bool:
        """Return whether the best token is always taken; top_k or top_p have to ask for draws."""
        return self.temperature == 0 or self.top_k == 1 or not (self.top_k or self.top_p)

    @property
    def penalizes(self) -> bool:
        """Return whether a token's logit depends on how often it was seen."""
        neutral = (1.0, 0.0, 0.0)
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != neutral

    @property
    def adjusts(self) -> bool:
        """Return whether the logits change, apart from min_tokens, before a token is chosen."""
        return self.penalizes or bool(self.bad_words) or self.embedding_bias is not None


class Sampler:
    """Chooses the tokens of one sequence, whatever else is in the batch.

    `choose` looks at the tokens accepted so far; the caller accepts each token it keeps.
    """

    def __init__(
        self, sampling: Sampling, prompt: Sequence[int], vocab: int, sequence: int = 0
    ) -> None:
        self._sampling = sampling
        self._prompt = prompt
        self._vocab = vocab
        self.generated: list[int] = []
        self._plain = sampling.greedy and not sampling.adjusts
        seed = None if sampling.seed is None else (sampling.seed + sequence) % 2**64
        self._random = None if sampling.greedy else np.random.default_rng(seed)
        self._end_ids = [token for token in sampling.end_ids if 0 <= token < vocab]
        words = [word for word in sampling.bad_words if word[-1] < vocab]
        self._banned = [word[0] for word in words if len(word) == 1]
        self._bad_words: dict[int, list[tuple[int, ...]]] = {}  # by the token before their last
        for word in words:
            if len(word) > 1:
                self._bad_words.setdefault(word[-2], []).append(word)
        # Of each token, and the ids of those above 0, once they matter.
        self._counts: Counts | None = None
        self._seen: Ids = np.empty(0, np.intp)

    @property
    def plain(self) -> bool:
        """Return whether the next token is just the largest logit, as a whole batch can take it."""
        return self._plain and len(self.generated) >= self._sampling.min_tokens

    def accept(self, token: int) -> None:
        """Take note of a token that became part of the output."""
        self.generated.append(token)
        if self._counts is not None:
            if not self._counts[token]:
                self._seen = np.append(self._seen, token)
            self._counts[token] += 1

    def choose(self, logits: Floats, largest: int | None = None) -> int:
        """Return the next token for a row of logits; MinitronError when they are not numbers.

        `largest` is the id of the largest logit, the first of equal ones, where it is known.
        """
        scores = self._scores(logits, largest)
        best, top = scores.best()
        if not math.isfinite(top):
            raise MinitronError(f"the model's best logit is {top}; expected a number")
        return best if self._random is None else self._draw(scores, top, self._random)

    def _scores(self, logits: Floats, largest: int | None) -> RowScores:
        sampling = self._sampling
        bias, divisor = sampling.embedding_bias, 1.0
        row: npt.NDArray[Any] = logits if bias is None else logits.astype(np.float64) + bias
        if sampling.temperature is not None:
            divisor = max(sampling.temperature, _SMALLEST_TEMPERATURE)
        banned = [*self._banned, *self._ending_a_bad_word()]
        if len(self.generated) < sampling.min_tokens:
            banned += self._end_ids
        seen = self._seen_ids() if sampling.penalizes else _NO_IDS
        special = _NO_IDS
        if banned or len(seen):
            special = np.unique(np.concatenate([seen, np.array(banned, np.intp)]))
        values = np.full(len(special), -math.inf)
        if len(seen):
            values = self._penalized(row[special].astype(np.float64) / divisor, special)
            values[np.isin(special, banned)] = -math.inf
        # A bias may have made another token the largest.
        return RowScores(row, divisor, special, values, largest if bias is None else None)

    def _seen_ids(self) -> Ids:
        if self._counts is None:
            self._counts = np.bincount([*self._prompt, *self.generated], minlength=self._vocab)
            self._seen = np.flatnonzero(self._counts)
        return self._seen

    def _penalized(self, scores: Doubles, ids: Ids) -> Doubles:
        assert self._counts is not None
        sampling, counts = self._sampling, self._counts[ids]
        factor = sampling.repetition_penalty
        seen = np.where(scores < 0, scores * factor, scores / factor)
        return np.asarray(seen - sampling.presence_penalty - sampling.frequency_penalty * counts)

    def _ending_a_bad_word(self) -> list[int]:
        """Return the tokens that would complete a bad word of several tokens."""
        return [
            word[-1]
            for last in (self.generated or self._prompt)[-1:]
            for word in self._bad_words.get(last, ())
            if self._follows(word[:-1])
        ]

    def _follows(self, start: tuple[int, ...]) -> bool:
        missing = len(start) - len(self.generated)
        before = self._prompt[-missing:] if missing > 0 else ()
        return (*before, *self.generated[-len(start) :]) == start

    def _draw(self, scores: RowScores, top: float, random: np.random.Generator) -> int:
        sampling = self._sampling
        fraction = sampling.top_p if sampling.top_p is not None and sampling.top_p < 1 else None
        if sampling.top_k:
            ids, values = scores.largest(sampling.top_k)
            weights = np.exp(values - top)
            if fraction is not None:
                mass = weights.cumsum()
                end = np.searchsorted(mass, fraction * weights.sum()) + 1
                ids, weights = ids[:end], weights[:end]
        elif fraction is not None:
            ids, weights = nucleus(scores, fraction, top)
        else:
            weights = np.exp(scores.every() - top)
            ids = np.arange(len(weights))
        if sampling.min_p:
            likely = weights >= sampling.min_p * weights.max()
            ids, weights = ids[likely], weights[likely]
        mass = weights.cumsum()
        at = np.searchsorted(mass, random.random() * mass[-1], side="right")
        # Rounding may land on the total itself, past which only banned tokens lie.
        return int(ids[min(at, np.searchsorted(mass, mass[-1]))])


def log_prob(logits: Floats, token: int) -> float:
    """Return the natural log of the probability that the model itself gives a token.

    That is before penalties, temperature, top-k and top-p, so it compares across requests.
    """
    shifted = logits - logits.max()
    return float(shifted[token] - np.log(np.exp(shifted).sum(dtype=np.float64)))
