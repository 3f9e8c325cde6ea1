"""From the executor's events to the responses of `tensorrt_llm`.

Without streaming a sequence answers once, at its end. A request that was stopped or that ran out
of time ends as in TensorRT-LLM's executor: with the tokens so far, and the reason. As there, every
response of a stream repeats the prompt's logits and what the request took so far.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import triton_python_backend_utils as pb_utils
from minitron_models.reference.runtime_call import RuntimeCall
from minitron_models.request_metrics import RequestMetrics
from minitron_models.triton_io import Sender
from numpy.typing import NDArray

from minitron_trt.executor import Event, FinishReason, Timing

FINISH_REASONS: Final = {
    FinishReason.END_ID: b"stop",
    FinishReason.STOP_WORDS: b"stop",
    FinishReason.LENGTH: b"length",
    FinishReason.TIMED_OUT: b"timeout",
    FinishReason.CANCELLED: b"cancelled",
}

Outputs = dict[str, NDArray[Any]]


class RequestResponses:
    """The responses of one client's request: of all sequences of all its rows."""

    def __init__(
        self,
        sender: Sender,
        calls: Sequence[RuntimeCall],
        *,
        stream_ids: Sequence[int | None],
        stream_interval: int,
        check_period_s: float,
        metrics: RequestMetrics,
        done: Callable[[], None],
    ) -> None:
        """Answer by `sender`; `done` is called before the last response."""
        self._sender = sender
        self._metrics = metrics
        self._done = done
        self._arrival = time.monotonic()
        self._input_tokens = sum(len(call.request.prompt) for call in calls)
        self._interval = stream_interval
        self._tokens = 0
        self._check_period_s = check_period_s
        self._checked = self._arrival
        self._context: dict[int, NDArray[np.float32]] = {}  # by row
        self._pending = {
            (row, sequence): _NextResponse(
                call, row if len(calls) > 1 else None, sequence, stream_id
            )
            for row, (call, stream_id) in enumerate(zip(calls, stream_ids, strict=True))
            for sequence in range(call.request.sequences)
        }

    def check_over(self) -> bool:
        """Find out whether what still runs may stop: all is said, or the client left.

        Asks the server seldom: it is a message to its process and back.
        """
        if not self._pending:
            return True
        now = time.monotonic()
        if now - self._checked < self._check_period_s:
            return False
        self._checked = now
        return bool(self._sender.is_cancelled())

    def close(self) -> None:
        """Say no more; what still runs stops."""
        self._pending.clear()

    def on_event(self, row: int, event: Event) -> None:
        """Take what the executor says of one row; send what is due."""
        pending = self._pending.get((row, event.sequence))
        if pending is None:
            return
        reason = event.finish_reason
        if event.tokens:
            now = time.monotonic()
            if not self._tokens:
                self._metrics.first_token(now - self._arrival)
            self._tokens += len(event.tokens)
            pending.count(len(event.tokens), now)
        if event.context_logits is not None:
            self._context[row] = event.context_logits
        pending.add(event, self._context.get(row))
        if reason is None:
            if pending.is_due(self._interval):
                self._sender.send(pending.take())
        elif reason is FinishReason.ERROR:
            self.close()
            self._metrics.failed(pb_utils.TritonError.INTERNAL)
            self._done()
            self._sender.fail(event.error or "", pb_utils.TritonError.INTERNAL)
        else:
            self._end((row, event.sequence), pending, event)

    def _end(self, key: tuple[int, int], pending: _NextResponse, event: Event) -> None:
        outputs = {**pending.take(), **pending.ending(event)}
        del self._pending[key]
        assert event.finish_reason is not None
        reason = FINISH_REASONS[event.finish_reason].decode()
        self._metrics.sequence_ended(reason, pending.tokens, pending.seconds)
        if not self._pending:
            self._metrics.request_ended(
                input_tokens=self._input_tokens,
                output_tokens=self._tokens,
                seconds=time.monotonic() - self._arrival,
            )
            self._done()
        self._sender.send(outputs, last=not self._pending)


class _NextResponse:
    """What one sequence has to say in its next response."""

    def __init__(
        self, call: RuntimeCall, row: int | None, sequence: int, stream_id: int | None
    ) -> None:
        """`row` is the request's place in a batch, None when it is alone."""
        self._call = call
        self._log_probs_wanted = call.request.sampling.log_probs
        several = call.request.sequences > 1
        self.tokens = 0
        self.seconds = 0.0  # from the first token to the last
        self._began = 0.0
        self._ids: list[int] = []
        self._sent = False
        self._cumulated = 0.0
        self._log_probs: list[float] = []
        self._logits: list[NDArray[np.float32]] = []
        self._context: NDArray[np.float32] | None = None
        self._timing: Timing | None = None
        self._accepted_drafts = 0
        self._always: Outputs = {}
        if stream_id is not None:
            self._always["stream_id"] = np.array([[stream_id]], np.uint64)
        if several or row is not None:
            self._always["batch_index"] = _number(row or 0)
        if several:
            self._always["sequence_index"] = _number(sequence)
        if call.count_input:
            self._always["num_input_tokens"] = _number(len(call.request.prompt))

    def add(self, event: Event, context: NDArray[np.float32] | None) -> None:
        """Keep what an event brings; `context` is the logits of the prompt, if there are any."""
        self._ids += event.tokens
        self._log_probs += event.log_probs
        if event.generation_logits is not None:
            self._logits.append(event.generation_logits)
        self._context, self._timing = context, event.timing
        self._accepted_drafts = event.accepted_drafts

    def count(self, tokens: int, now: float) -> None:
        """Count tokens that came at a time."""
        if not self.tokens:
            self._began = now
        self.tokens += tokens
        self.seconds = now - self._began

    def is_due(self, interval: int) -> bool:
        """Return whether a streamed response is due: the first token, then every so many."""
        return self._call.streaming and (not self._sent or len(self._ids) >= interval)

    def take(self) -> Outputs:
        """Return the outputs of the next response, and begin the one after it."""
        ids, self._ids, self._sent = self._ids, [], True
        outputs = dict(self._always)
        if self._call.count_output:
            outputs["num_output_tokens"] = _number(len(ids))
        if self._log_probs_wanted:
            outputs |= self._take_probabilities()
        if self._logits:
            # [1, beams, tokens, vocabulary], and of the prompt [1, tokens, vocabulary].
            outputs["generation_logits"] = np.concatenate(self._logits)[None, None]
            self._logits = []
        if self._context is not None:
            outputs["context_logits"] = self._context[None]
        if self._timing is not None:
            drafts = len(self._call.request.draft)
            outputs |= _metrics(self._timing, self._accepted_drafts, drafts)
        if self._call.prepend_prompt and not self._call.streaming:
            ids = [*self._call.request.prompt, *ids]
        outputs["output_ids"] = np.array([[ids]], np.int32)
        outputs["sequence_length"] = _number(len(ids))
        return outputs

    def _take_probabilities(self) -> Outputs:
        """Return the log probabilities of the ids that are due: [1, 1, n], and their sum so far."""
        self._cumulated += sum(self._log_probs)
        outputs = {
            "output_log_probs": np.array([[self._log_probs]], np.float32),
            "cum_log_probs": np.array([[self._cumulated]], np.float32),
        }
        self._log_probs = []
        return outputs

    def ending(self, event: Event) -> Outputs:
        """Return what only a sequence's last response has."""
        assert event.finish_reason is not None
        reason = np.array([[FINISH_REASONS[event.finish_reason]]], np.object_)
        return {"finish_reason": reason}


def _number(value: int) -> NDArray[np.int32]:
    return np.array([[value]], np.int32)


def _metrics(timing: Timing, accepted_drafts: int, drafts: int) -> Outputs:
    """Return what a request took: all that TensorRT-LLM says, 0 where there is nothing (yet).

    Times are nanoseconds of the machine's monotonic clock. A block of the KV cache is a slot, which
    is never reused with what is in it.
    """
    blocks = int(timing.first_scheduled_s is not None)
    return {
        **{
            f"{name.removesuffix('_s')}_time_ns": np.array([[round((time or 0) * 1e9)]], np.int64)
            for name, time in timing._asdict().items()
        },
        "kv_cache_alloc_new_blocks": _number(blocks),
        "kv_cache_alloc_total_blocks": _number(blocks),
        "kv_cache_reused_blocks": _number(0),
        "acceptance_rate": np.array([[accepted_drafts / max(1, drafts)]], np.float32),
        "total_accepted_draft_tokens": _number(accepted_drafts),
        "total_draft_tokens": _number(drafts),
    }
