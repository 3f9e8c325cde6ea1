"""A StepModel that computes nothing, and what tests do with an executor over it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minitron_trt.executor import Event, Executor, FinishReason, Request, StepBatch
from minitron_trt.executor.step import Floats

VOCAB = 64
COUNT_UP: Floats = np.roll(np.eye(VOCAB, dtype=np.float32), 1, axis=1)
RANDOM: Floats = np.random.default_rng(0).normal(size=(VOCAB, VOCAB)).astype(np.float32)


@dataclass
class ScriptedModel:
    """A StepModel whose logits depend on the last token only: `table[token]`. It counts up.

    Like a real one it keeps a length per slot, and fails when a chunk does not go on from there;
    or from before, where a draft that does not hold is forgotten.
    """

    slots: int = 2
    max_seq_len: int = 100
    vocab: int = VOCAB
    table: Floats = field(default_factory=lambda: COUNT_UP)
    fails_on: int = -1
    forgets: bool = False
    batches: list[dict[int, list[int]]] = field(default_factory=list)
    held: dict[int, int] = field(default_factory=dict)
    rows: list[int] = field(default_factory=list)  # of logits, in each step

    def step(self, batch: StepBatch) -> Floats:
        stops = np.cumsum(batch.lengths)
        chunks = {}
        for slot, stop, length in zip(batch.slots.tolist(), stops, batch.lengths, strict=True):
            positions = batch.positions[stop - length : stop].tolist()
            start = positions[0] and self.held[slot]
            if self.forgets:
                start = min(start, positions[0])
            if slot in chunks or positions != list(range(start, start + length)):
                raise ValueError(f"slot {slot} holds {start} tokens, got positions {positions}")
            self.held[slot] = start + int(length)
            chunks[slot] = batch.input_ids[stop - length : stop].tolist()
        self.batches.append(chunks)
        if self.fails_on in batch.input_ids:
            raise RuntimeError("device lost")
        rows = stops - 1 if batch.logit_rows is None else batch.logit_rows
        self.rows.append(len(rows))
        logits: Floats = self.table[batch.input_ids[rows]]
        return logits


class Inbox(list[Event]):
    """The events of one request."""

    def __call__(self, event: Event) -> None:
        self.append(event)

    @property
    def tokens(self) -> list[int]:
        return [token for event in self for token in event.tokens]

    @property
    def reason(self) -> FinishReason | None:
        assert all(event.finish_reason is None for event in self[:-1])
        return self[-1].finish_reason if self else None


def submit(executor: Executor, name: str, prompt: tuple[int, ...], **options: Any) -> Inbox:
    inbox = Inbox()
    fields = {"max_tokens": 5, **options}
    is_cancelled = fields.pop("is_cancelled", lambda: False)
    executor.submit(Request(name, prompt, **fields), inbox, is_cancelled)
    return inbox


def drain(executor: Executor) -> None:
    while executor.step():
        pass
