"""Speculative decoding in tensorrt_llm_bls: a smaller model drafts, tensorrt_llm checks.

In rounds, as upstream's BLS model has them: the draft model continues the text by some tokens,
tensorrt_llm keeps those that it would have chosen itself and adds at least one of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from minitron_models.triton_types import Inputs, Outputs
from numpy.typing import NDArray

if TYPE_CHECKING:
    from minitron_models.model_calls import TokenModel

_EVERY_ROUND: Final = ("input_ids", "input_lengths", "request_output_len", "streaming")
"""Inputs that are said anew in each round, or left out: what streams are the rounds."""

_OF_THE_ANSWER: Final = ("return_", "guided_decoding_")
"""How inputs begin that the draft model is not told: what the client wants to see."""

# Outputs of several rounds are put together: along their tokens, as a sum, or as the first.
_TOKEN_AXIS: Final = {"output_ids": 2, "output_log_probs": 2, "generation_logits": 2}
_SUMS: Final = ("num_output_tokens", "sequence_length")
_SUMS_SO_FAR: Final = ("cum_log_probs", "total_accepted_draft_tokens", "total_draft_tokens")
_FIRST: Final = (
    *("num_input_tokens", "arrival_time_ns", "first_scheduled_time_ns", "first_token_time_ns"),
)


class DraftedModel:
    """Answers of tensorrt_llm, begun by drafts; in the place of a TokenModel for one request."""

    def __init__(
        self, model: TokenModel, draft_name: str, count: int, is_over: Callable[[], bool]
    ) -> None:
        """`count` is of the tokens to draft; `is_over` is asked whether to go on, before a call."""
        self._model = model
        self._draft_name = draft_name
        self._count = count
        self._is_over = is_over

    def generate(
        self, request_id: str, outputs: Sequence[str], timeout_us: int, inputs: Inputs
    ) -> Iterator[Outputs]:
        """Yield the outputs of each round, or of all as one where the request does not stream."""
        deadline = time.monotonic() + timeout_us / 1e6 if timeout_us else None
        rounds = self._rounds(request_id, outputs, deadline, inputs)
        streaming = inputs.get("streaming")
        if streaming is not None and streaming.any():
            yield from _counted_on(rounds)
        else:
            answers = list(_counted_on(rounds))
            if answers:
                yield _joined(answers)

    def _rounds(
        self, request_id: str, outputs: Sequence[str], deadline: float | None, inputs: Inputs
    ) -> Iterator[Outputs]:
        ids: list[int] = inputs["input_ids"].reshape(-1).tolist()
        prompt, left = len(ids), int(inputs["request_output_len"].item())
        while left and not self._is_over():
            told = _told(inputs, len(ids) - prompt)
            # tensorrt_llm adds a token of its own to whatever it keeps, so one draft less will do.
            drafts = self._propose(request_id, deadline, told, ids, min(self._count, left - 1))
            if self._is_over():
                return
            told |= _round_inputs(ids, len(drafts) + 1)
            if drafts:
                told["draft_input_ids"] = np.array([drafts], np.int32)
            answer = _only(self._model.generate(request_id, outputs, _microseconds(deadline), told))
            added = _ids(answer)[:left]
            ids += added
            left -= len(added)
            reason = answer["finish_reason"].item() if "finish_reason" in answer else b"length"
            # A round ends by its own length, which is no reason of the answer's.
            last = not (added and left) or reason != b"length"
            if not last:
                answer.pop("finish_reason", None)
            yield answer
            if last:
                return

    def _propose(
        self,
        request_id: str,
        deadline: float | None,
        told: Mapping[str, NDArray[Any]],
        ids: list[int],
        count: int,
    ) -> list[int]:
        """Return how the draft model goes on; fewer tokens where it would end, none of none."""
        if not count:
            return []
        inputs = {
            name: value for name, value in told.items() if not name.startswith(_OF_THE_ANSWER)
        }
        inputs |= _round_inputs(ids, count)
        outputs = ["output_ids", "sequence_length"]
        answer = _only(
            self._model.generate(
                request_id, outputs, _microseconds(deadline), inputs, name=self._draft_name
            )
        )
        return _ids(answer)[:count]


def _told(inputs: Inputs, generated: int) -> dict[str, NDArray[Any]]:
    """Return what every call of a round is told, after so many tokens of the answer."""
    told = {name: value for name, value in inputs.items() if name not in _EVERY_ROUND}
    if "seed" in told:
        # Else each round would draw by the same numbers as the one before it.
        told["seed"] = told["seed"] + np.array(generated, told["seed"].dtype)
    if "min_tokens" in told:
        told["min_tokens"] = np.maximum(told["min_tokens"] - np.int32(generated), 0)
    return told


def _round_inputs(ids: list[int], count: int) -> dict[str, NDArray[Any]]:
    return {
        "input_ids": np.array([ids], np.int32),
        "input_lengths": np.array([[len(ids)]], np.int32),
        "request_output_len": np.array([[count]], np.int32),
    }


def _microseconds(deadline: float | None) -> int:
    """Return the time left for a request of Triton's, for which 0 is for ever."""
    return 0 if deadline is None else max(1, round((deadline - time.monotonic()) * 1e6))


def _only(responses: Iterator[Outputs]) -> dict[str, NDArray[Any]]:
    """Return the one response with outputs; a call has to be read to its end."""
    answers = [answer for answer in responses if answer]
    # A request that was stopped may end without any.
    return dict(answers[0]) if answers else {"output_ids": np.empty((1, 1, 0), np.int32)}


def _ids(answer: Outputs) -> list[int]:
    ids: list[int] = answer["output_ids"].reshape(-1).tolist()
    length = answer.get("sequence_length")
    return ids if length is None else ids[: int(length.item())]


def _counted_on(rounds: Iterator[Outputs]) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield each round's outputs with what counts from the request's beginning made so."""
    so_far: dict[str, NDArray[Any]] = {}
    for answer in rounds:
        outputs = dict(answer)
        for name in _FIRST:
            if name in outputs:
                outputs[name] = so_far.setdefault(name, outputs[name])
        for name in _SUMS_SO_FAR:
            if name in outputs:
                outputs[name] = so_far[name] = so_far.get(name, 0) + outputs[name]
        if "acceptance_rate" in outputs and "total_draft_tokens" in outputs:
            rate = outputs["total_accepted_draft_tokens"] / np.maximum(
                1, outputs["total_draft_tokens"]
            )
            outputs["acceptance_rate"] = rate.astype(np.float32)
        yield outputs


def _joined(answers: Sequence[dict[str, NDArray[Any]]]) -> Outputs:
    """Return the rounds as the one response of a request that does not stream."""
    joined = dict(answers[-1])
    for name, axis in _TOKEN_AXIS.items():
        if name in joined:
            joined[name] = np.concatenate([answer[name] for answer in answers], axis=axis)
    for name in _SUMS:
        if name in joined:
            joined[name] = np.sum([answer[name] for answer in answers], axis=0, dtype=np.int32)
    return joined
