"""Rounds of drafting and checking, over a stand-in of both models that counts up."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from minitron_models.drafted_model import DraftedModel
from minitron_models.triton_types import Inputs, Outputs

OUTPUTS = ("finish_reason", "output_ids")
END = 50


class CountingModels:
    """Stands in for a TokenModel: the target counts up to END, the draft errs at some numbers."""

    def __init__(self, errs_at: Sequence[int] = (), seconds: float = 0.0) -> None:
        self.calls: list[tuple[str, dict[str, Any], int]] = []
        self._errs_at = errs_at
        self._seconds = seconds

    def generate(
        self,
        request_id: str,
        outputs: Sequence[str],
        timeout_us: int,
        inputs: Inputs,
        *,
        name: str = "tensorrt_llm",
    ) -> Iterator[Outputs]:
        self.calls.append(
            (name, {key: value.tolist() for key, value in inputs.items()}, timeout_us)
        )
        time.sleep(self._seconds)
        last, count = int(inputs["input_ids"][0, -1]), int(inputs["request_output_len"].item())
        drafting = name != "tensorrt_llm"
        ids = [
            token + (drafting and token in self._errs_at)
            for token in range(last + 1, min(last + count, END) + 1)
        ]
        answer: dict[str, Any] = {"output_ids": np.array([[ids]], np.int32)}
        if "finish_reason" in outputs:
            reason = b"length" if len(ids) == count else b"stop"
            answer["finish_reason"] = np.array([[reason]], np.object_)
        if "num_input_tokens" in outputs:
            answer["num_input_tokens"] = np.array([[inputs["input_ids"].size]], np.int32)
            answer["num_output_tokens"] = np.array([[len(ids)]], np.int32)
        if "cum_log_probs" in outputs:
            answer["output_log_probs"] = np.full((1, 1, len(ids)), -0.5, np.float32)
            answer["cum_log_probs"] = np.array([[-0.5 * len(ids)]], np.float32)
        if "acceptance_rate" in outputs:
            drafts = inputs.get("draft_input_ids", np.empty((1, 0))).reshape(-1).tolist()
            wrong = [at for at, (a, b) in enumerate(zip(drafts, ids, strict=False)) if a != b]
            accepted = wrong[0] if wrong else len(drafts)
            answer["total_accepted_draft_tokens"] = np.array([[accepted]], np.int32)
            answer["total_draft_tokens"] = np.array([[len(drafts)]], np.int32)
            answer["acceptance_rate"] = np.array([[0.0]], np.float32)
        yield answer
        yield {}

    @property
    def drafts(self) -> list[list[int]]:
        """Return the drafts that the target was sent."""
        return [
            inputs["draft_input_ids"][0]
            for _, inputs, _ in self.calls
            if "draft_input_ids" in inputs
        ]


def run(
    models: CountingModels,
    *,
    count: int = 3,
    start: int = 1,
    max_tokens: int = 10,
    streaming: bool = True,
    outputs: Sequence[str] = OUTPUTS,
    timeout_us: int = 0,
    is_over: Any = lambda: False,
    **inputs: Any,
) -> list[Outputs]:
    said: dict[str, Any] = {
        "input_ids": np.array([[start]], np.int32),
        "input_lengths": np.array([[1]], np.int32),
        "request_output_len": np.array([[max_tokens]], np.int32),
        "streaming": np.array([[streaming]]),
        **inputs,
    }
    model: Any = models
    drafted = DraftedModel(model, "draft", count, is_over)
    return list(drafted.generate("id", outputs, timeout_us, said))


def ids(answers: list[Outputs]) -> list[list[int]]:
    return [answer["output_ids"].reshape(-1).tolist() for answer in answers]


def test_each_round_is_a_draft_and_one_token_more_and_the_last_says_why() -> None:
    models = CountingModels()
    answers = run(models)

    assert ids(answers) == [[2, 3, 4, 5], [6, 7, 8, 9], [10, 11]]
    assert models.drafts == [[2, 3, 4], [6, 7, 8], [10]]
    assert [answer.get("finish_reason") is not None for answer in answers] == [False, False, True]
    assert answers[-1]["finish_reason"].item() == b"length"


def test_a_request_that_does_not_stream_gets_its_rounds_as_one() -> None:
    outputs = (*OUTPUTS, "num_input_tokens", "cum_log_probs")
    (answer,) = run(CountingModels(), streaming=False, outputs=outputs)

    assert ids([answer]) == [list(range(2, 12))]
    assert answer["output_log_probs"].shape == (1, 1, 10)
    assert answer["cum_log_probs"].item() == -5
    assert answer["num_input_tokens"].item() == 1
    assert answer["num_output_tokens"].item() == 10


def test_acceptance_counts_from_the_beginning() -> None:
    models = CountingModels(errs_at=(3, 10))
    *_, last = run(models, outputs=(*OUTPUTS, "acceptance_rate"), max_tokens=11)

    assert models.drafts == [[2, 4, 4], [6, 7, 8], [11, 11]]
    assert last["total_accepted_draft_tokens"].item() == 1 + 3 + 0
    assert last["total_draft_tokens"].item() == 8
    assert last["acceptance_rate"].item() == pytest.approx(4 / 8)


@pytest.mark.parametrize("outputs", [OUTPUTS, ("output_ids", "sequence_length")], ids=str)
@pytest.mark.parametrize("start", [40, 46, 49, 50])
def test_it_ends_where_the_target_ends(start: int, outputs: tuple[str, ...]) -> None:
    """Also where the model does not say why: by a round that adds nothing."""
    answers = run(CountingModels(), start=start, max_tokens=30, outputs=outputs)

    assert [token for part in ids(answers) for token in part] == list(range(start + 1, END + 1))


def test_nothing_is_called_once_it_is_over() -> None:
    models = CountingModels()

    assert run(models, is_over=lambda: len(models.calls) >= 3)[1:] == []
    assert [name for name, *_ in models.calls] == ["draft", "tensorrt_llm", "draft"]


def test_time_is_that_of_the_whole_request() -> None:
    models = CountingModels(seconds=0.02)
    run(models, timeout_us=10_000_000)
    left = [timeout_us for *_, timeout_us in models.calls]

    assert left == sorted(left, reverse=True)
    assert 0 < left[-1] < left[0] - 50_000


def test_each_round_draws_by_other_numbers_and_counts_what_was_before() -> None:
    models = CountingModels()
    one = np.ones((1, 1), np.bool_)
    run(
        models,
        seed=np.array([[7]], np.uint64),
        min_tokens=np.array([[5]], np.int32),
        temperature=np.array([[0.5]], np.float32),
        return_log_probs=one,
    )
    said = [inputs for _, inputs, _ in models.calls]

    assert [each["seed"][0][0] for each in said] == [7, 7, 11, 11, 15, 15]
    assert [each["min_tokens"][0][0] for each in said] == [5, 5, 1, 1, 0, 0]
    assert all(each["temperature"] == [[0.5]] for each in said)
    assert ["return_log_probs" in each for each in said] == [False, True] * 3
