"""What OpenAI's API means by what it leaves out or calls otherwise than TensorRT-LLM."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

DRAWN: Final[Mapping[str, float]] = MappingProxyType({"temperature": 1.0, "top_p": 1.0})
"""How a request that says nothing draws its tokens; Triton's models would take the likeliest."""


def choice_pattern(choices: Sequence[str]) -> str:
    """Return the regular expression of a few answers, which is a kind of guide."""
    return "(" + "|".join(map(re.escape, choices)) + ")"
