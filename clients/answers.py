"""Whole answers, put together from chunks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from minitron_trt.clients.messages import Chunk, GenerateRequest
from minitron_trt.errors import UsageError

_PER_TOKEN: Final = frozenset({"output_log_probs", "generation_logits"})


@dataclass(slots=True)
class Answer:
    """One sequence of an answer.

    `outputs` holds the values of each other tensor, flat: those of every token one after another,
    and the last of what is said once, or anew with every response.
    """

    text: str = ""
    finish_reason: str | None = None
    outputs: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, chunk: Chunk) -> None:
        """Append a chunk of this sequence."""
        self.text += chunk.text
        self.finish_reason = chunk.finish_reason or self.finish_reason
        for name, values in chunk.outputs.items():
            before = self.outputs.get(name, []) if name in _PER_TOKEN else []
            self.outputs[name] = [*before, *values]


def collect(chunks: Iterable[Chunk]) -> Sequence[Answer]:
    """Return the sequences of an answer in their order."""
    answers: dict[int, Answer] = {}
    for chunk in chunks:
        answers.setdefault(chunk.sequence, Answer()).add(chunk)
    return [answers[index] for index in sorted(answers)]


def check_single(request: GenerateRequest) -> None:
    """Raise UsageError for a request whose sequences would run together in one text."""
    if request.sequences > 1:
        raise UsageError(
            f"the request asks for {request.sequences} sequences and a text holds one; "
            "use answers() or chunks()"
        )
