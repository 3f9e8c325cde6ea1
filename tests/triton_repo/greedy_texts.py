"""What transformers makes of prompts, greedily: once, for all tests that compare with it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MOST_TOKENS: Final = 200
"""Most answers of the samples end before it."""


@functools.cache
def greedy_ids(folder: Path, prompt: str) -> tuple[int, ...]:
    """Return the ids that a model in bfloat16 answers with, at most MOST_TOKENS."""
    tokenizer, model = _loaded(folder)
    inputs = tokenizer(prompt, return_tensors="pt")
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=MOST_TOKENS, do_sample=False, pad_token_id=0)
    return tuple(ids[0, inputs["input_ids"].shape[1] :].tolist())


def greedy_text(folder: Path, prompt: str, tokens: int = MOST_TOKENS) -> str:
    """Return the text of the first so many tokens."""
    tokenizer, _ = _loaded(folder)
    text: str = tokenizer.decode(greedy_ids(folder, prompt)[:tokens], skip_special_tokens=True)
    return text


@functools.lru_cache(maxsize=1)
def _loaded(folder: Path) -> tuple[Any, Any]:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    return tokenizer, model
