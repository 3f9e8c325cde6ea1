"""What MBPP and HumanEval are scored by; lm-eval imports this file by its path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Final

# Hugging Face's package, not this folder. What it fetches from the hub runs nothing unless
# HF_ALLOW_CODE_EVAL is 1. Fetched now: without it, hours of answers could not be scored.
_CODE_EVAL: Final[Any] = import_module("evaluate").load("code_eval")


def programs(resps: Sequence[Sequence[str]], docs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the programs to run: HumanEval's are continuations of their prompts."""
    return [
        [doc.get("prompt", "") + answer for answer in answers]
        for answers, doc in zip(resps, docs, strict=True)
    ]


def pass_at_1(references: Sequence[str], predictions: Sequence[Sequence[str]]) -> float:
    """Return the share of the programs that pass their tests."""
    scores, _ = _CODE_EVAL.compute(references=references, predictions=predictions, k=[1])
    return float(scores["pass@1"])
