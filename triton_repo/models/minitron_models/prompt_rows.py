"""Several prompts in one request: a batch, of which each row is a request of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from minitron_models.text_encoder import Prompt
from numpy.typing import NDArray

_WORD_LISTS = ("stop_words_list", "bad_words_list")


def stack_inputs(prompts: Sequence[Prompt]) -> dict[str, NDArray[Any]]:
    """Return the inputs of tensorrt_llm for prompts, a row for each: [prompts, …].

    What is shorter is padded: ids with 0, for their number is known, and offsets of words with -1.
    A prompt without words, or without a bias, has a row that says nothing.
    """
    if len(prompts) == 1:
        return prompts[0].inputs
    names = dict.fromkeys(name for prompt in prompts for name in prompt.inputs)
    return {name: _stack(name, [prompt.inputs.get(name) for prompt in prompts]) for name in names}


def _stack(name: str, rows: Sequence[NDArray[Any] | None]) -> NDArray[Any]:
    present = [row for row in rows if row is not None]
    shape = np.max([row.shape[1:] for row in present], axis=0)
    stacked = np.zeros((len(rows), *shape), present[0].dtype)
    if name in _WORD_LISTS:
        stacked[:, 1] = -1
    for place, row in zip(stacked, rows, strict=True):
        if row is not None:
            place[tuple(map(slice, row.shape[1:]))] = row[0]
    return stacked
