"""From what TensorRT-LLM's LLM class generates to Triton's responses, sequence by sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from minitron_models.llmapi.request import Asked, find_word
from minitron_models.requests import Sender, strings
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
        found = output.outputs
        for sequence, rows in zip(self._sequences, _split(found, self._asked.rows), strict=True):
            if sequence.reason is None and sequence.take(rows, output.finished):
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


def _split(outputs: Sequence[Any], rows: int) -> list[Sequence[Any]]:
    """Return the outputs of each sequence: all of them for beams, else one."""
    return [outputs[start : start + rows] for start in range(0, len(outputs), rows)]


class _Row:
    """The ids of one continuation, or of one beam, and what was said of each."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self.ids: list[int] = []
        self.log_probs: list[float] = []
        self.logits: list[NDArray[np.float32]] = []
        self.reason: str | None = None

    def take(self, found: Any, finished: bool, sent: int) -> None:
        """Read a CompletionOutput, of which the first ids were sent."""
        before = len(self.ids)
        self.ids = list(found.token_ids)
        if found.logprobs:
            self.log_probs = _chosen(self.ids, found.logprobs)
        if "return_generation_logits" in self._asked.wishes:
            self._keep_logits(found.generation_logits, len(self.ids) - before)
        self.reason = found.finish_reason
        if finished and self.reason is None:
            full = len(self.ids) >= self._asked.sampling["max_tokens"]
            self.reason = "length" if full else "stop"
        cut = find_word(self.ids, self._asked.stop_words, before)
        if cut is not None:
            self._cut(max(cut, sent))
        elif self.reason == "stop" and self.ids and self.ids[-1] == self._asked.end_id:
            self._cut(max(len(self.ids) - 1, sent))

    def _keep_logits(self, logits: Any, new: int) -> None:
        """Keep the logits of the newest ids: of a stream LLM gives those of each step alone."""
        if logits is not None and new > 0:
            rows = _logits(logits)
            self.logits.extend(rows[-new:] if self._asked.in_steps else rows[:new])

    def _cut(self, end: int) -> None:
        self.reason = "stop"
        for what in (self.ids, self.log_probs, self.logits):
            del what[end:]


class _Sequence:
    """One answer to the prompt, of one row unless it has beams, and how much of it was sent."""

    def __init__(self, index: int, asked: Asked) -> None:
        self._index = index
        self._asked = asked
        self._sent = 0
        self._rows = [_Row(asked) for _ in range(asked.rows)]
        self._metrics: Any = None
        self.reason: str | None = None

    @property
    def unsent(self) -> int:
        """Return how many ids were not sent yet."""
        return len(self._rows[0].ids) - self._sent

    def take(self, found: Sequence[Any], finished: bool) -> bool:
        """Read its CompletionOutputs, the best first; return whether anything is new."""
        before = len(self._rows[0].ids)
        for row, output in zip(self._rows, found, strict=True):
            row.take(output, finished, self._sent)
        self._metrics = found[0].request_perf_metrics
        self.reason = self._rows[0].reason
        return self.reason is not None or len(self._rows[0].ids) > before

    def tensors(self, output: Any) -> dict[str, NDArray[Any]]:
        """Return the tensors of the next response, which is the last one once there is a reason.

        ValueError when `output`, which there is unless time was up, lacks what was asked for.
        """
        asked, wishes, start = self._asked, self._asked.wishes, self._sent
        self._sent = len(self._rows[0].ids)
        whole = [] if asked.excludes_input or asked.streaming else asked.prompt
        rows = [np.array([*whole, *row.ids[start:]], np.int32) for row in self._rows]
        lengths = np.array([[len(row) for row in rows]], np.int32)
        found: dict[str, NDArray[Any]] = {"output_ids": _stacked(rows), "sequence_length": lengths}
        if asked.stream_id is not None:
            found["stream_id"] = np.array([[asked.stream_id]], np.uint64)
        if asked.sequences > 1:
            found |= {"sequence_index": _int(self._index), "batch_index": _int(0)}
        if "return_log_probs" in wishes:
            new = [np.array(row.log_probs[start:], np.float32) for row in self._rows]
            found["output_log_probs"] = _stacked(new)
            found["cum_log_probs"] = np.array([[sum(r.log_probs) for r in self._rows]], np.float32)
        if "return_generation_logits" in wishes:
            found |= self._generation_logits(start, output)
        if self.reason is not None:
            found["finish_reason"] = strings([self.reason])
            found |= self._last(output)
        return found

    def _generation_logits(self, start: int, output: Any) -> dict[str, NDArray[Any]]:
        lacking = [row for row in self._rows if len(row.logits) < len(row.ids)]
        if lacking and output is not None:
            raise ValueError(
                f"return_generation_logits: TensorRT-LLM gave those of {len(lacking[0].logits)} of "
                f"{len(lacking[0].ids)} tokens; serve with stream_interval 1 and without a "
                "speculative_config"
            )
        if lacking or not any(row.logits[start:] for row in self._rows):
            return {}
        return {"generation_logits": _stacked([np.array(row.logits[start:]) for row in self._rows])}

    def _last(self, output: Any) -> dict[str, NDArray[Any]]:
        """Return what only the last response has."""
        wishes, count = self._asked.wishes, len(self._asked.prompt)
        tensors: dict[str, NDArray[Any]] = {}
        if "return_num_input_tokens" in wishes:
            tensors["num_input_tokens"] = _int(count)
        if "return_num_output_tokens" in wishes:
            tensors["num_output_tokens"] = _int(sum(len(row.ids) for row in self._rows))
        if "return_context_logits" in wishes and self._index == 0 and output is not None:
            tensors["context_logits"] = _context_logits(output.context_logits, count)
        if "return_perf_metrics" in wishes:
            if self._metrics is not None:
                tensors |= _metrics(self._metrics)
            elif output is not None and output.finished:
                raise ValueError("return_perf_metrics: TensorRT-LLM gave none")
        return tensors


def _context_logits(logits: Any, count: int) -> NDArray[np.float32]:
    """Return the logits of a prompt's tokens; ValueError when there are not as many."""
    rows = 0 if logits is None else len(logits)
    if rows != count:
        raise ValueError(
            f"return_context_logits: TensorRT-LLM gave those of {rows} of {count} tokens; serve "
            "with kv_cache_config.enable_block_reuse false and without a speculative_config"
        )
    return _logits(logits)[None]


def _stacked(rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return rows of one answer as one tensor; as in TensorRT-LLM's own model -1 fills the rest."""
    longest = max(rows, key=len)
    stacked = np.full((1, len(rows), *longest.shape), -1, longest.dtype)
    for place, row in zip(stacked[0], rows, strict=True):
        if len(row):
            place[: len(row)] = row
    return stacked


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
