"""The chunks of Triton's `tensorrt_llm`, as the chunks of an answer that Dynamo takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from minitron_trt.clients.messages import Chunk
from minitron_trt.dynamo_worker.token_requests import AskedTokens

STOP: Final = "stop"
LENGTH: Final = "length"
CANCELLED: Final = "cancelled"
# Dynamo has no word for a time that is up: such an answer is cut short, as at its limit.
_REASONS: Final[Mapping[str, str]] = {LENGTH: LENGTH, "timeout": LENGTH, CANCELLED: CANCELLED}


@dataclass(slots=True)
class _AnswerSequence:
    """How far one sequence has come, and why it ended."""

    count: int = 0
    reason: str | None = None


class TokenAnswer:
    """Turns an answer's chunks, as they come, into Dynamo's; it ends when every sequence has."""

    def __init__(self, asked: AskedTokens) -> None:
        self._asked = asked
        self._sequences = [_AnswerSequence() for _ in range(asked.request.sequences)]

    @property
    def is_complete(self) -> bool:
        """Say whether every sequence has ended, so that nothing more need be made."""
        return all(sequence.reason for sequence in self._sequences)

    def add(self, chunk: Chunk) -> Iterator[dict[str, Any]]:
        """Yield what a chunk of Triton's says, if anything."""
        sequence = self._sequences[chunk.sequence]
        if sequence.reason is not None:
            # An id that Triton was not told had ended it; the other sequences go on.
            return
        ids = self._kept(sequence, chunk.token_ids)
        if sequence.reason is None and chunk.finish_reason:
            sequence.reason = _REASONS.get(chunk.finish_reason, STOP)
        if ids or sequence.reason:
            log_probs = [float(value) for value in chunk.outputs.get("output_log_probs", ())]
            yield self._record(chunk.sequence, ids, log_probs[: len(ids)])

    def end(self) -> Iterator[dict[str, Any]]:
        """Yield the ends of sequences of which Triton has not said why they ended.

        Upstream's models leave that to be found out.
        """
        for index, sequence in enumerate(self._sequences):
            if sequence.reason is None:
                sequence.reason = LENGTH if sequence.count >= self._asked.max_tokens else STOP
                yield self._record(index, [], [])

    def _kept(self, sequence: _AnswerSequence, ids: Sequence[int]) -> list[int]:
        """Return the ids up to one that ends the sequence; that one is told, as engines do."""
        kept = []
        for each in ids:
            kept.append(each)
            sequence.count += 1
            if each in self._asked.stop_ids and sequence.count > self._asked.min_tokens:
                sequence.reason = STOP
                break
        return kept

    def _record(self, index: int, ids: list[int], log_probs: list[float]) -> dict[str, Any]:
        record: dict[str, Any] = {"token_ids": ids, "index": index}
        if self._asked.log_probs and ids:
            record["log_probs"] = log_probs
            if self._asked.tells_likeliest:
                record["top_logprobs"] = [
                    [{"rank": 1, "token_id": each, "logprob": value}]
                    for each, value in zip(ids, log_probs, strict=True)
                ]
        reason = self._sequences[index].reason
        if reason is not None:
            record["finish_reason"] = reason
        if self.is_complete:
            made = sum(sequence.count for sequence in self._sequences)
            prompt = self._asked.prompt_tokens
            record["completion_usage"] = {
                "prompt_tokens": prompt,
                "completion_tokens": made,
                "total_tokens": prompt + made,
            }
        return record
