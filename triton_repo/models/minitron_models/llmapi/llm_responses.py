"""From what TensorRT-LLM's LLM class generates to Triton's responses, sequence by sequence."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from minitron_models.llmapi.llm_call import LlmCall, find_word
from minitron_models.llmapi.trtllm_results import CompletionOutput, RequestOutput
from minitron_models.request_metrics import RequestMetrics
from minitron_models.triton_io import Sender, strings
from minitron_models.triton_types import Outputs
from numpy.typing import NDArray

# Fields of TensorRT-LLM's RequestPerfMetrics, for the outputs of its own Triton model: the times'
# names get their unit, the KV cache's are other words there.
TIMES = ("arrival_time", "first_scheduled_time", "first_token_time", "last_token_time")
CACHE = {
    "kv_cache_alloc_new_blocks": "num_new_allocated_blocks",
    "kv_cache_reused_blocks": "num_reused_blocks",
    "kv_cache_alloc_total_blocks": "num_total_allocated_blocks",
}
DRAFTS = ("total_accepted_draft_tokens", "total_draft_tokens")


class LlmResponses:
    """The responses of one request; sends what is new, or without streaming everything at once."""

    def __init__(self, call: LlmCall, sender: Sender, metrics: RequestMetrics) -> None:
        self._call = call
        self._sender = sender
        self._metrics = metrics
        self._arrival = time.monotonic()
        self._first_token: float | None = None
        self._sequences = [_Sequence(index, call) for index in range(call.sequences)]

    @property
    def ended(self) -> bool:
        """Return whether every sequence has come to its end."""
        return all(sequence.reason for sequence in self._sequences)

    def take(self, output: RequestOutput) -> None:
        """Send what a RequestOutput has that was not sent; LLM changes it in place."""
        if self._first_token is None:
            self._first_token = time.monotonic()
            if self._call.in_steps:
                self._metrics.first_token(self._first_token - self._arrival)
        split = _split(output.outputs, self._call.rows)
        for sequence, rows in zip(self._sequences, split, strict=True):
            if sequence.reason is None and sequence.take(rows, output.finished):
                done = sequence.reason is not None
                if done or (self._call.streaming and sequence.unsent):
                    self._send(sequence, output)

    def end(self, reason: str) -> None:
        """Send what there is of the sequences that did not end by themselves."""
        for sequence in self._sequences:
            if sequence.reason is None:
                sequence.reason = reason
                self._send(sequence, None)

    def note_cancelled(self) -> None:
        """Note the end of the sequences that did not end by themselves, and send nothing."""
        for sequence in self._sequences:
            if sequence.reason is None:
                sequence.reason = "cancelled"
                self._note_end(sequence, sequence.reason)

    def _send(self, sequence: _Sequence, output: RequestOutput | None) -> None:
        tensors = sequence.take_tensors(output)
        if sequence.reason is not None:
            self._note_end(sequence, sequence.reason)
        self._sender.send(tensors, last=self.ended)

    def _note_end(self, sequence: _Sequence, reason: str) -> None:
        now = time.monotonic()
        # When the tokens came is not known where they come at once.
        in_steps = self._call.in_steps and self._first_token is not None
        self._metrics.sequence_ended(
            reason, sequence.tokens if in_steps else 0, now - (self._first_token or now)
        )
        if self.ended:
            self._metrics.request_ended(
                input_tokens=len(self._call.prompt),
                output_tokens=sum(each.tokens for each in self._sequences),
                seconds=now - self._arrival,
            )


def _split(outputs: Sequence[CompletionOutput], rows: int) -> list[Sequence[CompletionOutput]]:
    """Return the outputs of each sequence: all of them for beams, else one."""
    return [outputs[start : start + rows] for start in range(0, len(outputs), rows)]


class _Row:
    """The ids of one continuation, or of one beam, and what was said of each."""

    def __init__(self, call: LlmCall) -> None:
        self._call = call
        self.ids: list[int] = []
        self.log_probs: list[float] = []
        self.logits: list[NDArray[np.float32]] = []
        self.reason: str | None = None

    def take(self, completion: CompletionOutput, finished: bool, sent: int) -> None:
        """Read a CompletionOutput, of which the first ids were sent."""
        before = len(self.ids)
        self.ids = list(completion.token_ids)
        if completion.logprobs:
            self.log_probs = _chosen(self.ids, completion.logprobs)
        if "return_generation_logits" in self._call.wishes:
            self._keep_logits(completion.generation_logits, len(self.ids) - before)
        self.reason = completion.finish_reason
        if finished and self.reason is None:
            full = len(self.ids) >= self._call.sampling["max_tokens"]
            self.reason = "length" if full else "stop"
        cut = find_word(self.ids, self._call.stop_words, before)
        if cut is not None:
            # What was sent cannot be taken back.
            self._cut(max(cut, sent))
        # LLM hands out the id that ended a text. TensorRT-LLM's own model does not: an end id goes,
        # a stop word stays.
        elif self.reason == "stop" and self.ids and self.ids[-1] == self._call.end_id:
            self._cut(max(len(self.ids) - 1, sent))

    def _keep_logits(self, logits: Any, new: int) -> None:
        """Keep the logits of the newest ids: of a stream LLM gives those of each step alone."""
        if logits is not None and new > 0:
            rows = _logits(logits)
            self.logits.extend(rows[-new:] if self._call.in_steps else rows[:new])

    def _cut(self, end: int) -> None:
        self.reason = "stop"
        for what in (self.ids, self.log_probs, self.logits):
            del what[end:]


class _Sequence:
    """One answer to the prompt, of one row unless it has beams, and how much of it was sent."""

    def __init__(self, index: int, call: LlmCall) -> None:
        self._index = index
        self._call = call
        self._sent = 0
        self._rows = [_Row(call) for _ in range(call.rows)]
        self._metrics: Any = None
        self.reason: str | None = None

    @property
    def tokens(self) -> int:
        """Return how many ids there are."""
        return len(self._rows[0].ids)

    @property
    def unsent(self) -> int:
        """Return how many ids were not sent yet."""
        return len(self._rows[0].ids) - self._sent

    def take(self, completions: Sequence[CompletionOutput], finished: bool) -> bool:
        """Read its CompletionOutputs, the best first; return whether anything is new."""
        before = len(self._rows[0].ids)
        for row, completion in zip(self._rows, completions, strict=True):
            row.take(completion, finished, self._sent)
        self._metrics = completions[0].request_perf_metrics
        self.reason = self._rows[0].reason
        return self.reason is not None or len(self._rows[0].ids) > before

    def take_tensors(self, output: RequestOutput | None) -> Outputs:
        """Return the tensors of the next response, which is the last one once there is a reason.

        Ids are [1, rows, n], -1 where a row is shorter; in a stream those that were not sent yet.

        ValueError when `output`, which there is unless time was up, lacks what was asked for.
        """
        call, wishes, start = self._call, self._call.wishes, self._sent
        self._sent = len(self._rows[0].ids)
        before = [] if call.excludes_input or call.streaming else call.prompt
        rows = [np.array([*before, *row.ids[start:]], np.int32) for row in self._rows]
        lengths = np.array([[len(row) for row in rows]], np.int32)
        tensors = {"output_ids": _stacked(rows), "sequence_length": lengths}
        if call.stream_id is not None:
            tensors["stream_id"] = np.array([[call.stream_id]], np.uint64)
        if call.sequences > 1:
            tensors |= {"sequence_index": _int(self._index), "batch_index": _int(0)}
        if "return_log_probs" in wishes:
            new = [np.array(row.log_probs[start:], np.float32) for row in self._rows]
            tensors["output_log_probs"] = _stacked(new)
            sums = [sum(row.log_probs) for row in self._rows]
            tensors["cum_log_probs"] = np.array([sums], np.float32)
        if "return_generation_logits" in wishes:
            tensors |= self._generation_logits(start, output)
        if self.reason is not None:
            tensors["finish_reason"] = strings([self.reason])[None]
            tensors |= self._last(output)
        return tensors

    def _generation_logits(
        self, start: int, output: RequestOutput | None
    ) -> dict[str, NDArray[Any]]:
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

    def _last(self, output: RequestOutput | None) -> dict[str, NDArray[Any]]:
        """Return what only the last response has."""
        wishes, count = self._call.wishes, len(self._call.prompt)
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
    # float() first: numpy has no bfloat16.
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
    tensors: dict[str, NDArray[Any]] = {}
    for name in TIMES:
        seconds = getattr(metrics.timing_metrics, name).total_seconds()
        tensors[f"{name}_ns"] = np.array([[round(seconds * 1e9)]], np.int64)
    for name, source in CACHE.items():
        tensors[name] = _int(getattr(metrics.kv_cache_metrics, source))
    drafts = metrics.speculative_decoding
    tensors["acceptance_rate"] = np.array([[drafts.acceptance_rate]], np.float32)
    return tensors | {name: _int(getattr(drafts, name)) for name in DRAFTS}
