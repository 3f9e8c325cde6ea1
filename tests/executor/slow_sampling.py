"""The choice of a token with every score of the vocabulary computed, sorted and summed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from minitron_trt.executor.sampling import Sampling


class SlowSampler:
    """What `Sampler` chooses, without bad words of several tokens."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        self.sampling, self.prompt = sampling, tuple(prompt)
        self.generated: list[int] = []
        self.random = np.random.default_rng(sampling.seed)

    def choose(self, logits: Any) -> int:
        """Return the next token."""
        sampling, scores = self.sampling, self._adjusted(logits)
        if sampling.greedy:
            return int(scores.argmax())
        # Largest first, equal ones by id.
        ids = np.argsort(-scores, kind="stable")
        if sampling.top_k:
            ids = ids[: sampling.top_k]
        weights = np.exp(scores[ids] - scores.max())
        if sampling.top_p is not None and sampling.top_p < 1:
            order = np.lexsort((ids, -weights))
            total = weights.sum() if sampling.top_k else np.exp(scores - scores.max()).sum()
            end = np.searchsorted(weights[order].cumsum(), sampling.top_p * total) + 1
            ids, weights = ids[order][:end], weights[order][:end]
        elif not sampling.top_k:
            ids = np.arange(len(scores))
            weights = np.exp(scores - scores.max())
        if sampling.min_p:
            likely = weights >= sampling.min_p * weights.max()
            ids, weights = ids[likely], weights[likely]
        mass = weights.cumsum()
        at = int(np.searchsorted(mass, self.random.random() * mass[-1], side="right"))
        return int(ids[min(at, int(np.searchsorted(mass, mass[-1])))])

    def _adjusted(self, logits: Any) -> Any:
        sampling, scores = self.sampling, logits.astype(np.float64)
        if sampling.embedding_bias is not None:
            scores = scores + sampling.embedding_bias
        if sampling.temperature is not None:
            scores = scores / max(sampling.temperature, 1e-6)
        for token, count in Counter((*self.prompt, *self.generated)).items():
            factor = sampling.repetition_penalty
            score = scores[token] * factor if scores[token] < 0 else scores[token] / factor
            scores[token] = score - sampling.presence_penalty - sampling.frequency_penalty * count
        banned = [word[0] for word in sampling.bad_words]
        if len(self.generated) < sampling.min_tokens:
            banned += sampling.end_ids
        scores[banned] = -math.inf
        return scores
