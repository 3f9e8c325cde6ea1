"""Drafts: another model's tokens are kept as far as the model itself would have chosen them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.executor.doubles import RANDOM, ScriptedModel, drain, submit
from tests.executor.test_reference import CheckpointOf

from minitron_trt.convert.conversion import ConvertOptions
from minitron_trt.errors import BadInputError
from minitron_trt.executor import Executor, FinishReason, Sampling
from minitron_trt.executor.reference import ReferenceModel

SAMPLINGS = {
    "greedy": Sampling(),
    "drawn": Sampling(top_p=0.9, temperature=0.7, seed=3),
    "penalized": Sampling(repetition_penalty=1.3, frequency_penalty=0.2, bad_words=((9,), (3, 4))),
    "at-least": Sampling(min_tokens=4, end_ids=tuple(range(32))),
}


def test_what_holds_of_a_draft_comes_in_one_step_with_the_token_after_it() -> None:
    model = ScriptedModel(forgets=True)
    executor = Executor(model)
    inbox = submit(executor, "a", (3, 4), max_tokens=7, draft=(5, 6, 60, 8))
    drain(executor)

    assert [event.tokens for event in inbox] == [(5, 6, 7), (8,), (9,), (10,), (11,)]
    assert model.batches == [{0: [3, 4, 5, 6, 60, 8]}, {0: [7]}, {0: [8]}, {0: [9]}, {0: [10]}]
    assert [event.accepted_drafts for event in inbox] == [2] * 5
    # The token before the draft, and the draft's own.
    assert model.rows == [5, 1, 1, 1, 1]


@pytest.mark.parametrize("wrong", [0, 1, 5, 6, 12, None])
@pytest.mark.parametrize("budget", [2, 3, 64])
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_whatever_the_draft_the_answer_is_that_without(
    sampling: Sampling, budget: int, wrong: int | None
) -> None:
    """Also when prompt and draft are computed in several steps, and beside another request."""
    options: dict[str, Any] = {"max_tokens": 14, "sampling": sampling, "generation_logits": True}
    alone = Executor(ScriptedModel(table=RANDOM))
    expected = submit(alone, "a", (1, 2, 3), **options)
    drain(alone)
    draft = expected.tokens[:13]
    if wrong is not None and wrong < len(draft):
        draft[wrong] = (draft[wrong] + 1) % 64
    executor = Executor(ScriptedModel(table=RANDOM, forgets=True), max_tokens_per_step=budget)
    submit(executor, "other", (7, 8), max_tokens=9)
    inbox = submit(executor, "a", (1, 2, 3), draft=tuple(draft), **options)
    drain(executor)
    logits = [each.generation_logits for each in inbox if each.generation_logits is not None]

    assert inbox.tokens == expected.tokens
    assert inbox.reason == expected.reason
    assert np.array_equal(
        np.concatenate(logits),
        np.concatenate([each.generation_logits for each in expected if each.tokens]),
    )


def test_an_answer_may_end_inside_its_draft() -> None:
    executor = Executor(ScriptedModel(forgets=True))
    ended = submit(
        executor, "a", (1,), max_tokens=9, draft=(2, 3, 4), sampling=Sampling(end_ids=(4,))
    )
    stopped = submit(
        executor, "b", (1,), max_tokens=9, draft=(2, 3, 4), sampling=Sampling(stop_words=((2, 3),))
    )
    drain(executor)

    assert (ended.tokens, ended.reason) == ([2, 3], FinishReason.END_ID)
    assert (stopped.tokens, stopped.reason) == ([2, 3], FinishReason.STOP_WORDS)
    assert executor.stats().active == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draft": (64,)}, "draft_input_ids[0] is 64; expected a token id from 0 to 63"),
        ({"draft": (1, 2, 3, 4, 5)}, "draft_input_ids has 5 tokens and max_tokens is 5"),
        ({"draft": (1,), "context_logits": True}, "context logits cannot be returned"),
    ],
    ids=["id", "length", "context"],
)
def test_a_draft_that_cannot_be_checked_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError) as refused:
        submit(Executor(ScriptedModel()), "a", (1,), **options)

    assert message in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "nemotron"])
def test_a_real_models_answer_is_that_without_a_draft(
    checkpoint_of: CheckpointOf, architecture: str
) -> None:
    checkpoint = checkpoint_of(architecture, ConvertOptions())

    def answer(**options: Any) -> list[int]:
        model = ReferenceModel(checkpoint, slots=2, max_seq_len=64, dtype=torch.float32)
        executor = Executor(model)
        submit(executor, "other", (5, 6, 7), max_tokens=20)
        executor.step()
        inbox = submit(executor, "a", (1, 2, 3, 4), max_tokens=16, **options)
        drain(executor)
        return inbox.tokens

    expected = answer()
    wrong = (*expected[:6], (expected[6] + 1) % checkpoint.spec.vocab, *expected[7:12])

    assert answer(draft=tuple(expected[:15])) == expected
    assert answer(draft=wrong) == expected
    assert answer(draft=wrong[6:]) == expected
