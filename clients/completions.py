"""Whole answers, put together from chunks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from minitron_trt.clients.messages import Chunk, GenerateRequest
from minitron_trt.errors import UsageError

# A response has these for its own tokens only; what else comes repeatedly is a total so far.
_PER_TOKEN: Final = frozenset({"output_log_probs", "generation_logits"})


@dataclass(slots=True)
class Completion:
    """One sequence of an answer: its text, why it ended, and the other tensors that came with it.

    `outputs` holds each tensor's values, flat. Of a tensor with a value per token they are those of
    all tokens, in order; of any other they are those of the last response that had it.
    """

    text: str = ""
    finish_reason: str | None = None
    outputs: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, chunk: Chunk) -> None:
        """Append a chunk of this sequence."""
        self.text += chunk.text
        self.finish_reason = chunk.finish_reason or self.finish_reason
        for name, values in chunk.outputs.items():
            earlier = self.outputs.get(name, []) if name in _PER_TOKEN else []
            self.outputs[name] = [*earlier, *values]


def collect(chunks: Iterable[Chunk]) -> Sequence[Completion]:
    """Return the sequences of an answer in their order."""
    completions: dict[int, Completion] = {}
    for chunk in chunks:
        completions.setdefault(chunk.sequence, Completion()).add(chunk)
    return [completions[index] for index in sorted(completions)]


def check_single(request: GenerateRequest) -> None:
    """Raise UsageError for a request whose sequences would run together in one text."""
    if request.sequences > 1:
        raise UsageError(
            f"the request asks for {request.sequences} sequences and a text holds one; "
            "use completions() or chunks()"
        )
