"""How requests share steps: joining, leaving, holding back, and surviving each other."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest
from tests.executor.doubles import COUNT_UP, RANDOM, Inbox, ScriptedModel, drain, submit

from minitron_trt.errors import BadInputError, RefusedError, UsageError
from minitron_trt.executor import Event, Executor, FinishReason, Request, Sampler, Sampling


def test_a_request_ends_after_max_tokens_with_one_last_event() -> None:
    executor = Executor(ScriptedModel())
    inbox = submit(executor, "a", (3, 4), max_tokens=3)
    drain(executor)

    assert inbox == [
        Event((5,)),
        Event((6,)),
        Event((7,), finish_reason=FinishReason.LENGTH),
    ]


def test_requests_join_between_steps_and_share_them() -> None:
    model = ScriptedModel()
    executor = Executor(model)
    submit(executor, "a", (3, 4), max_tokens=4)
    executor.step()
    submit(executor, "b", (20, 21, 22), max_tokens=2)
    drain(executor)

    assert model.batches == [{0: [3, 4]}, {0: [5], 1: [20, 21, 22]}, {0: [6], 1: [23]}, {0: [7]}]


def test_a_slot_is_reused_in_order_of_arrival() -> None:
    model = ScriptedModel(slots=1)
    executor = Executor(model)
    inboxes = [submit(executor, str(n), (10 * n,), max_tokens=2) for n in range(3)]
    counts = [(executor.stats().active, executor.stats().waiting)]
    drain(executor)

    assert counts == [(0, 3)]
    assert model.batches == [{0: [t]} for t in (0, 1, 10, 11, 20, 21)]
    assert [inbox.tokens for inbox in inboxes] == [[1, 2], [11, 12], [21, 22]]
    assert (executor.stats().active, executor.stats().waiting) == (0, 0)


def test_prompts_go_in_chunks_beside_generation_within_the_token_budget() -> None:
    model = ScriptedModel(slots=3)
    executor = Executor(model, max_tokens_per_step=4)
    submit(executor, "a", (1,), max_tokens=4)
    executor.step()
    submit(executor, "b", (10, 11, 12, 13, 14), max_tokens=1)
    submit(executor, "c", (20, 21), max_tokens=1)
    drain(executor)

    assert model.batches == [
        {0: [1]},
        {0: [2], 1: [10, 11, 12]},
        {0: [3], 1: [13, 14], 2: [20]},
        {0: [4], 2: [21]},
    ]


@pytest.mark.parametrize("how", ["cancel", "poll"])
@pytest.mark.parametrize("where", ["generating", "prefilling", "queued"])
def test_a_cancelled_request_ends_at_the_next_step(how: str, where: str) -> None:
    executor = Executor(ScriptedModel(slots=1), max_tokens_per_step=2)
    cancelled: list[bool] = []
    if where == "queued":
        submit(executor, "first", (40,), max_tokens=20)
    prompt = (1, 2) if where == "generating" else (1, 2, 3, 4, 5, 6)
    inbox = submit(executor, "a", prompt, max_tokens=50, is_cancelled=lambda: bool(cancelled))
    executor.step()
    executor.step()
    seen = len(inbox.tokens)
    cancelled.append(True) if how == "poll" else executor.cancel("a")
    executor.step()

    assert seen == (2 if where == "generating" else 0)
    assert inbox.reason is FinishReason.CANCELLED
    assert len(inbox.tokens) == seen
    assert (executor.stats().active, executor.stats().waiting) == (1 if where == "queued" else 0, 0)


def test_cancelling_an_unknown_or_finished_request_is_no_error() -> None:
    executor = Executor(ScriptedModel())
    executor.cancel("never seen")
    inbox = submit(executor, "a", (1,), max_tokens=1)
    drain(executor)
    executor.cancel("a")

    assert inbox.reason is FinishReason.LENGTH


def test_requests_past_their_deadline_end_wherever_they_are() -> None:
    now = [100.0]
    executor = Executor(ScriptedModel(slots=1), clock=lambda: now[0])
    generating = submit(executor, "a", (1,), max_tokens=50, timeout_s=5.0)
    queued = submit(executor, "b", (1,), timeout_s=4.0)
    waiting = submit(executor, "c", (30,), max_tokens=2)
    executor.step()
    now[0] = 104.0
    executor.step()
    assert (generating.reason, queued.reason) == (None, FinishReason.TIMED_OUT)
    now[0] = 105.0
    drain(executor)

    assert generating.reason is FinishReason.TIMED_OUT
    assert generating.tokens == [2, 3]
    assert waiting.tokens == [31, 32]


@pytest.mark.parametrize(
    ("sampling", "tokens", "reason"),
    [
        (Sampling(end_ids=(14, 12)), [11], FinishReason.END_ID),
        (Sampling(end_ids=(15,)), [11, 12, 13, 14], FinishReason.END_ID),
        (Sampling(end_ids=(12,), min_tokens=3), [11, 0, 1, 2, 3], FinishReason.LENGTH),
        (Sampling(stop_words=((13,),)), [11, 12, 13], FinishReason.STOP_WORDS),
        (Sampling(stop_words=((12, 13),)), [11, 12, 13], FinishReason.STOP_WORDS),
        (Sampling(stop_words=((11, 12, 13),)), [11, 12, 13], FinishReason.STOP_WORDS),
        (Sampling(stop_words=((14,), (12, 13))), [11, 12, 13], FinishReason.STOP_WORDS),
        (Sampling(stop_words=((12, 14),)), [11, 12, 13, 14, 15], FinishReason.LENGTH),
        (Sampling(stop_words=((15, 16),)), [11, 12, 13, 14, 15], FinishReason.LENGTH),
        (Sampling(stop_words=((10, 11),)), [11, 12, 13, 14, 15], FinishReason.LENGTH),
        (Sampling(stop_words=((12, 13),), end_ids=(13,)), [11, 12], FinishReason.END_ID),
    ],
    ids=repr,
)
def test_an_end_id_goes_and_a_stop_word_stays(
    sampling: Sampling, tokens: list[int], reason: FinishReason
) -> None:
    executor = Executor(ScriptedModel())
    inbox = submit(executor, "a", (9, 10), sampling=sampling)
    drain(executor)

    assert (inbox.tokens, inbox.reason) == (tokens, reason)


def test_log_probs_go_with_the_tokens_that_are_sent() -> None:
    table = RANDOM + 10 * COUNT_UP
    chances = np.log(np.exp(table).max(axis=1) / np.exp(table).sum(axis=1))
    sampling = Sampling(log_probs=True, stop_words=((12, 13, 60), (17, 18)))
    executor = Executor(ScriptedModel(table=table))
    inbox = submit(executor, "a", (10,), max_tokens=20, sampling=sampling)
    drain(executor)

    assert inbox.reason is FinishReason.STOP_WORDS
    assert inbox.tokens == [11, 12, 13, 14, 15, 16, 17, 18]
    assert [len(event.log_probs) for event in inbox] == [len(event.tokens) for event in inbox]
    assert [p for event in inbox for p in event.log_probs] == pytest.approx(
        chances[10:18], abs=1e-5
    )


def test_a_seeded_request_draws_the_same_tokens_whoever_shares_its_batch() -> None:
    seeded = Sampling(top_p=1.0, seed=11)
    alone = Executor(ScriptedModel(slots=4, table=RANDOM))
    expected = submit(alone, "a", (1, 2, 3), max_tokens=20, sampling=seeded)
    drain(alone)
    crowded = Executor(ScriptedModel(slots=4, table=RANDOM), max_tokens_per_step=4)
    for name in "xyz":
        submit(crowded, name, (5, 6), max_tokens=9, sampling=Sampling(top_k=9))
    crowded.step()
    found = submit(crowded, "a", (1, 2, 3), max_tokens=20, sampling=seeded)
    drain(crowded)

    assert found.tokens == expected.tokens
    assert len(set(found.tokens)) > 5


def test_sequences_divided_among_cores_get_the_tokens_that_they_get_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    table = 3 * np.random.default_rng(1).normal(size=(6, 2**18)).astype(np.float32)
    table[5] = np.nan
    samplings = [Sampling(top_p=0.9, seed=n) for n in range(6)]
    executor = Executor(ScriptedModel(slots=6, vocab=2**18, table=table))
    inboxes = [
        submit(executor, str(n), (n,), max_tokens=1, sampling=sampling)
        for n, sampling in enumerate(samplings)
    ]
    drain(executor)
    executor.close()
    alone = [Sampler(samplings[n], (n,), 2**18).choose(table[n]) for n in range(5)]

    assert [inbox.tokens for inbox in inboxes] == [*([token] for token in alone), []]
    assert [inbox.reason for inbox in inboxes] == [FinishReason.LENGTH] * 5 + [FinishReason.ERROR]


def raising(*_: object) -> bool:
    raise ZeroDivisionError("poison")


@pytest.mark.parametrize("where", ["on_event", "is_cancelled", "logits"])
def test_a_poisoned_request_ends_with_an_error_and_harms_no_other(where: str) -> None:
    table = COUNT_UP.copy()
    table[21] = np.nan
    executor = Executor(ScriptedModel(table=table))
    healthy = submit(executor, "healthy", (1,))
    last: list[Event] = []

    def on_event(event: Event) -> None:
        last.append(event)
        if where == "on_event":
            raising()

    poll: Callable[[], bool] = raising if where == "is_cancelled" else lambda: False
    executor.submit(Request("poisoned", (20,), 9), on_event, poll)
    drain(executor)

    assert healthy.tokens == [2, 3, 4, 5, 6]
    assert [event.finish_reason for event in last if event.finish_reason] == [FinishReason.ERROR]
    assert last[-1].error is not None
    assert executor.stats().active == 0


def test_a_failing_step_ends_its_batch_and_the_executor_goes_on() -> None:
    executor = Executor(ScriptedModel(fails_on=33))
    lost = [submit(executor, "a", (1,)), submit(executor, "b", (32,))]
    waiting = submit(executor, "c", (10,), max_tokens=2)
    drain(executor)

    assert [inbox.reason for inbox in lost] == [FinishReason.ERROR] * 2
    assert lost[0][-1].error == "the model failed: RuntimeError('device lost')"
    assert waiting.tokens == [11, 12]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("a", (), 1), "input_ids is empty; expected at least one token id"),
        (Request("a", (1,), 0), "max_tokens is 0; expected at least 1"),
        (Request("a", (1, -1), 1), "input_ids[1] is -1; expected a token id from 0 to 63"),
        (Request("a", (64,), 1), "input_ids[0] is 64; expected a token id from 0 to 63"),
        (Request("a", (2**70,), 1), f"input_ids[0] is {2**70}; expected a token id from 0 to 63"),
        (Request("a", (1,), 1, timeout_s=0.0), "timeout_s is 0.0; expected a number above 0"),
        (
            Request("a", (1,) * 60, 41),
            "input_ids has 60 tokens and max_tokens is 41, together 101; this model holds "
            "max_seq_len 100: shorten the prompt or lower max_tokens",
        ),
        (
            Request("busy", (1,), 1),
            "request_id 'busy' is in use by a request that has not finished; choose another",
        ),
    ],
    ids=lambda value: value.request_id if isinstance(value, Request) else "",
)
def test_a_request_that_cannot_run_is_refused_by_field(request_: Request, message: str) -> None:
    executor = Executor(ScriptedModel())
    submit(executor, "busy", (1,))
    with pytest.raises(BadInputError) as caught:
        executor.submit(request_, Inbox())

    assert str(caught.value) == message


def test_a_request_id_is_free_again_when_the_last_event_arrives() -> None:
    executor = Executor(ScriptedModel())
    again = Inbox()

    def resubmit(event: Event) -> None:
        if event.finish_reason is not None:
            executor.submit(Request("a", (8,), 1), again)

    executor.submit(Request("a", (1,), 1), resubmit)
    drain(executor)

    assert again.tokens == [9]


def test_a_full_queue_refuses_requests() -> None:
    executor = Executor(ScriptedModel(), max_queue_size=1)
    submit(executor, "a", (1,))
    with pytest.raises(RefusedError, match="1 requests are waiting, as many as max_queue_size"):
        submit(executor, "b", (1,))


def test_fewer_tokens_a_step_than_slots_are_refused() -> None:
    with pytest.raises(UsageError, match="max_tokens_per_step is 3; expected at least one token"):
        Executor(ScriptedModel(slots=4), max_tokens_per_step=3)
