"""What the scheduler asks of whatever computes logits: a batch of tokens, and a protocol.

Nothing above it knows torch, and nothing below it knows requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StepBatch:
    """The tokens of one step: S sequences' chunks, packed one after another.

    `input_ids` and `positions` are [T]; `slots` and `lengths` are [S], and lengths sum to T.
    Positions are absolute, so a chunk's first position is the number of tokens that its slot's KV
    cache already holds. A chunk at position 0 begins a new sequence in its slot.
    `logit_rows` are the tokens, by their place in the batch, whose logits are wanted; None stands
    for the last token of each chunk.
    """

    input_ids: Ints
    positions: Ints
    slots: Ints
    lengths: Ints
    logit_rows: Ints | None = None


class StepModel(Protocol):
    """Something with a KV cache of `slots` sequences that computes the next token's logits."""

    @property
    def slots(self) -> int:
        """Return how many sequences the KV cache holds."""
        ...

    @property
    def max_seq_len(self) -> int:
        """Return how many tokens a sequence may have, prompt and output together."""
        ...

    @property
    def vocab(self) -> int:
        """Return the number of token ids."""
        ...

    def step(self, batch: StepBatch) -> Floats:
        """Return the logits that follow the wanted tokens: [S, vocab], or as many as are named."""
        ...
