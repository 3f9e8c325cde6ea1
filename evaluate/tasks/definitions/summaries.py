"""What XL-Sum is made of and scored by; lm-eval imports this file by its path."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any


def every_fifth(documents: Any) -> Any:
    """Return a fifth of a data set's documents, spread over all of it."""
    return documents.select(range(0, len(documents), 5))


def rouge1(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Return the F-measure of the words that a summary shares with the article's own."""
    # lm-eval asks for each document by itself, in lists of one.
    return _rouge("rouge1", references[0], predictions[0])


def rouge2(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Return the F-measure of the pairs of words that it shares."""
    return _rouge("rouge2", references[0], predictions[0])


def rougeL(references: Sequence[str], predictions: Sequence[str]) -> float:  # noqa: N802 - ROUGE's
    """Return the F-measure of the longest sequence of words that it shares."""
    return _rouge("rougeL", references[0], predictions[0])


def _rouge(name: str, reference: str, summary: str) -> float:
    return float(_scorer().score(reference, summary.strip())[name].fmeasure)


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
