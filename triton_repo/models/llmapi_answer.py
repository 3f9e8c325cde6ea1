"""From what TensorRT-LLM's LLM class generates to Triton's responses, sequence by sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llmapi_request import Asked, find_word
from minitron_requests import Sender, strings
from numpy.typing import NDArray

TIMES = ("arrival_time", "first_scheduled_time", "first_token_time", "last_token_time")
CACHE = {
    "kv_cache_alloc_new_blocks": "num_new_allocated_blocks",
    "kv_cache_reused_blocks": "num_reused_blocks",
    "kv_cache_alloc_total_blocks": "num_total_allocated_blocks",
}
DRAFTS = ("total_accepted_draft_tokens", "total_draft_tokens")


class Answer:
    """The responses of one request; sends what is new, or without streaming everything at once."""

    def __init__(self, asked: Asked, sender: Sender) -> None:
        self._asked = asked
        self._sender = sender
        self._sequences = [_Sequence(index, asked) for index in range(asked.sequences)]

    @property
    def ended(self) -> bool:
        """Return whether every sequence has come to its end."""
        return all(sequence.reason for sequence in self._sequences)

    def take(self, output: Any) -> None:
        """Send what a RequestOutput has that was not sent; LLM changes it in place."""
        for sequence, found in zip(self._sequences, output.outputs, strict=True):
            if sequence.reason is None and sequence.take(found, output.finished):
                done = sequence.reason is not None
                if done or (self._asked.streaming and sequence.unsent):
                    self._send(sequence, output)

    def end(self, reason: str) -> None:
        """Send what there is of the sequences that did not end by themselves."""
        for sequence in self._sequences:
            if sequence.reason is None:
                sequence.reason = reason
                self._send(sequence, None)

    def _send(self, sequence: _Sequence, output: Any) -> None:
        self._sender.send(sequence.tensors(output), last=self.ended)


class _Sequence:
    """One continuation of the prompt and how much of it was sent."""

    def __init__(self, index: int, asked: Asked) -> None:
        self._index = index
        self._asked = asked
        self._sent = 0
        self._ids: list[int] = []
        self._log_probs: list[float] = []
        self._found: Any = None
        self.reason: str | None = None

    @property
    def unsent(self) -> int:
        """Return how many ids were not sent yet."""
        return len(self._ids) - self._sent

    def take(self, found: Any, finished: bool) -> bool:
        """Read a CompletionOutput; return whether anything is new."""
        before = len(self._ids)
        self._found = found
        self._ids = list(found.token_ids)
        if found.logprobs:
            self._log_probs = _chosen(self._ids, found.logprobs)
        self.reason = found.finish_reason
        if finished and self.reason is None:
            full = len(self._ids) >= self._asked.sampling["max_tokens"]
            self.reason = "length" if full else "stop"
        cut = find_word(self._ids, self._asked.stop_words, before)
        if cut is not None:
            self._cut(cut)
        elif self.reason == "stop" and self._ids and self._ids[-1] == self._asked.end_id:
            self._cut(len(self._ids) - 1)
        return self.reason is not None or len(self._ids) > before

    def _cut(self, end: int) -> None:
        self.reason = "stop"
        del self._ids[max(end, self._sent) :]
        del self._log_probs[len(self._ids) :]

    def tensors(self, output: Any) -> dict[str, NDArray[Any]]:
        """Return the tensors of the next response, which is the last one once there is a reason."""
        asked, wishes, start = self._asked, self._asked.wishes, self._sent
        self._sent = len(self._ids)
        whole = [] if asked.excludes_input or asked.streaming else asked.prompt
        ids = [*whole, *self._ids[start:]]
        found = {"output_ids": np.array([[ids]], np.int32), "sequence_length": _int(len(ids))}
        if asked.stream_id is not None:
            found["stream_id"] = np.array([[asked.stream_id]], np.uint64)
        if asked.sequences > 1:
            found |= {"sequence_index": _int(self._index), "batch_index": _int(0)}
        if "return_log_probs" in wishes:
            found["output_log_probs"] = np.array([[self._log_probs[start:]]], np.float32)
            found["cum_log_probs"] = np.array([[sum(self._log_probs)]], np.float32)
        if self.reason is not None:
            found["finish_reason"] = strings([self.reason])
            found |= self._last(output)
        return found

    def _last(self, output: Any) -> dict[str, NDArray[Any]]:
        """Return what only the last response has."""
        wishes, found = self._asked.wishes, self._found
        tensors: dict[str, NDArray[Any]] = {}
        if "return_num_input_tokens" in wishes:
            tensors["num_input_tokens"] = _int(len(self._asked.prompt))
        if "return_num_output_tokens" in wishes:
            tensors["num_output_tokens"] = _int(len(self._ids))
        if "return_context_logits" in wishes and self._index == 0 and output is not None:
            tensors["context_logits"] = _logits(output.context_logits)[None]
        logits = getattr(found, "generation_logits", None)
        if "return_generation_logits" in wishes and logits is not None:
            tensors["generation_logits"] = _logits(logits)[None, None, : len(self._ids)]
        metrics = getattr(found, "request_perf_metrics", None)
        if "return_perf_metrics" in wishes and metrics is not None:
            tensors |= _metrics(metrics)
        return tensors


def _int(value: int) -> NDArray[np.int32]:
    return np.array([[value]], np.int32)


def _logits(values: Any) -> NDArray[np.float32]:
    """Return a torch tensor of any float type and device."""
    array: NDArray[np.float32] = values.float().cpu().numpy()
    return array


def _chosen(ids: Sequence[int], log_probs: Sequence[Any]) -> list[float]:
    """Return each id's log probability; LLM gives numbers, or records by id for each position."""
    return [
        float(entry[i].logprob if isinstance(entry, dict) else entry)
        for i, entry in zip(ids, log_probs, strict=False)
    ]


def _metrics(metrics: Any) -> dict[str, NDArray[Any]]:
    """Return what a request took; times are of the runtime's clock, in nanoseconds."""
    found: dict[str, NDArray[Any]] = {}
    for name in TIMES:
        seconds = getattr(metrics.timing_metrics, name).total_seconds()
        found[f"{name}_ns"] = np.array([[round(seconds * 1e9)]], np.int64)
    for name, source in CACHE.items():
        found[name] = _int(getattr(metrics.kv_cache_metrics, source))
    drafts = metrics.speculative_decoding
    found["acceptance_rate"] = np.array([[drafts.acceptance_rate]], np.float32)
    return found | {name: _int(getattr(drafts, name)) for name in DRAFTS}
