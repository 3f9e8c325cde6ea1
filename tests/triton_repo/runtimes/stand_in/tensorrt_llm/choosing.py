"""How the stand-in chooses tokens: greedily, by chance, or by a search with beams."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from tensorrt_llm.sampling_params import SamplingParams


def shaped(
    logits: torch.Tensor, asked: SamplingParams, answer: list[int], history: Mapping[int, int]
) -> torch.Tensor:
    """Return logits after bias, bad words, the least length and, over `history`, penalties."""
    logits = logits.clone()
    if asked.embedding_bias is not None:
        logits += asked.embedding_bias
    for token, count in history.items():
        scale = asked.repetition_penalty or 1.0
        logits[token] *= scale if logits[token] < 0 else 1 / scale
        logits[token] -= (asked.presence_penalty or 0) + count * (asked.frequency_penalty or 0)
    for word in asked._bad_word_ids or ():
        if answer[len(answer) - len(word) + 1 :] == word[:-1]:
            logits[word[-1]] = -torch.inf
    if len(answer) < (asked.min_tokens or 0) and asked.end_id is not None and asked.end_id >= 0:
        logits[asked.end_id] = -torch.inf
    return logits


def chosen(logits: torch.Tensor, asked: SamplingParams, draw: torch.Generator) -> int:
    """Return the next token."""
    if asked.greedy:
        return int(logits.argmax())
    logits = logits / (asked.temperature or 1.0)
    if asked.top_k:
        logits[logits < logits.topk(asked.top_k).values[-1]] = -torch.inf
    if asked.top_p:
        shares, order = logits.softmax(-1).sort(descending=True)
        logits[order[shares.cumsum(-1) - shares >= asked.top_p]] = -torch.inf
    return int(torch.multinomial(logits.softmax(-1), 1, generator=draw))


@dataclass(slots=True)
class Beam:
    """One of the likeliest continuations."""

    score: float = 0.0
    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)
    reason: str | None = None


def search(
    look: Callable[[list[int]], torch.Tensor],
    asked: SamplingParams,
    reason: Callable[[list[int]], str | None],
) -> list[Beam]:
    """Return the beams that are left when all have ended, the likeliest first.

    `look` returns the logits after some ids, `reason` why these end. A beam that has ended stays
    among the others as long as it is likely enough.
    """
    beams = [Beam()]
    while any(beam.reason is None for beam in beams):
        candidates = [beam for beam in beams if beam.reason is not None]
        for beam in beams:
            if beam.reason is None:
                candidates += _continued(beam, look(beam.ids), asked.beams)
        beams = sorted(candidates, key=lambda beam: -beam.score)[: asked.beams]
        for beam in beams:
            beam.reason = beam.reason or reason(beam.ids)
    return beams


def _continued(beam: Beam, logits: torch.Tensor, width: int) -> list[Beam]:
    values, tokens = logits.log_softmax(-1).topk(width)
    return [
        Beam(
            beam.score + value,
            [*beam.ids, token],
            [*beam.log_probs, value],
            [*beam.logits, logits],
        )
        for value, token in zip(values.tolist(), tokens.tolist(), strict=True)
    ]
