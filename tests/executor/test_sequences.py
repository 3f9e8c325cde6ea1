"""Several sequences of one prompt, logits and times of a request, the executor's figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.executor.doubles import COUNT_UP, RANDOM, VOCAB, Inbox, ScriptedModel, drain, submit

from minitron_trt.errors import BadInputError, RefusedError
from minitron_trt.executor import Event, Executor, FinishReason, Request, Sampling, Stats, Timing
from minitron_trt.executor.step import Floats

DRAWN = Sampling(top_p=1.0, seed=5)


def tokens_of(inbox: Inbox, sequence: int) -> list[int]:
    return [token for event in inbox if event.sequence == sequence for token in event.tokens]


def reasons(inbox: Inbox) -> dict[int, FinishReason]:
    last = [event for event in inbox if event.finish_reason is not None]
    assert len({event.sequence for event in last}) == len(last)
    return {event.sequence: event.finish_reason for event in last if event.finish_reason}


def test_sequence_i_is_what_a_request_with_the_seed_plus_i_gets() -> None:
    executor = Executor(ScriptedModel(slots=4, table=RANDOM))
    together = submit(executor, "n", (1, 2), max_tokens=20, sampling=DRAWN, sequences=3)
    drain(executor)
    alone = []
    for seed in (5, 6, 7):
        sampling = Sampling(top_p=1.0, seed=seed)
        alone.append(submit(executor, str(seed), (1, 2), max_tokens=20, sampling=sampling))
    drain(executor)

    assert [tokens_of(together, n) for n in range(3)] == [inbox.tokens for inbox in alone]
    assert len({tuple(inbox.tokens) for inbox in alone}) == 3


def test_greedy_sequences_are_alike() -> None:
    executor = Executor(ScriptedModel(slots=2))
    inbox = submit(executor, "n", (1,), max_tokens=3, sequences=2)
    drain(executor)

    assert [tokens_of(inbox, n) for n in range(2)] == [[2, 3, 4]] * 2
    assert reasons(inbox) == {0: FinishReason.LENGTH, 1: FinishReason.LENGTH}


def test_more_sequences_than_slots_take_turns() -> None:
    executor = Executor(ScriptedModel(slots=2))
    inbox = submit(executor, "n", (1,), max_tokens=3, sequences=5)
    drain(executor)

    assert [tokens_of(inbox, n) for n in range(5)] == [[2, 3, 4]] * 5


@pytest.mark.parametrize("how", ["cancel", "time", "error"])
def test_what_ends_a_request_ends_all_of_its_sequences(how: str) -> None:
    now = [0.0]
    table = COUNT_UP.copy()
    table[3] = np.nan if how == "error" else table[3]
    executor = Executor(ScriptedModel(slots=2, table=table), clock=lambda: now[0])
    inbox = submit(executor, "n", (1,), max_tokens=30, sequences=3, timeout_s=9.0)
    executor.step()
    if how == "cancel":
        executor.cancel("n")
    now[0] = 9.0 if how == "time" else 1.0
    executor.step()
    executor.step()
    drain(executor)
    reason = {
        "cancel": FinishReason.CANCELLED,
        "time": FinishReason.TIMED_OUT,
        "error": FinishReason.ERROR,
    }[how]

    assert reasons(inbox) == dict.fromkeys(range(3), reason)
    assert executor.stats().active == executor.stats().waiting == 0


def test_sequences_that_would_not_fit_the_queue_are_refused() -> None:
    executor = Executor(ScriptedModel(slots=2), max_queue_size=3)
    with pytest.raises(BadInputError, match="num_return_sequences is 4; at most 3 fit"):
        submit(executor, "a", (1,), sequences=4)
    with pytest.raises(BadInputError, match="num_return_sequences is 0; expected at least 1"):
        submit(executor, "a", (1,), sequences=0)
    submit(executor, "b", (1,), sequences=2)
    with pytest.raises(RefusedError, match="2 requests are waiting"):
        submit(executor, "c", (1,), sequences=2)


def logits_of(inbox: Inbox, name: str) -> list[Floats | None]:
    return [getattr(event, name) for event in inbox]


@pytest.mark.parametrize("budget", [512, 4, 3])
def test_context_logits_are_those_of_every_prompt_token_once(budget: int) -> None:
    executor = Executor(ScriptedModel(slots=3, table=RANDOM), max_tokens_per_step=budget)
    prompt = (9, 3, 7, 1, 30, 31, 2)
    other = submit(executor, "x", (5, 6), max_tokens=4)
    inbox = submit(executor, "a", prompt, max_tokens=2, sequences=2, context_logits=True)
    drain(executor)
    first, *later = [event for event in inbox if event.sequence == 0]

    assert first.context_logits is not None
    assert np.array_equal(first.context_logits, RANDOM[list(prompt)])
    assert [event.context_logits for event in later] == [None] * len(later)
    assert {event.context_logits is None for event in inbox if event.sequence == 1} == {True}
    assert set(logits_of(other, "context_logits")) == {None}


def test_logits_of_prompts_that_nobody_wants_are_not_computed() -> None:
    model = ScriptedModel(slots=2)
    executor = Executor(model)
    submit(executor, "a", (1, 2, 3), max_tokens=2)
    drain(executor)
    submit(executor, "b", (1, 2, 3), max_tokens=2, context_logits=True)
    drain(executor)

    assert model.rows == [1, 1, 3, 1]


def test_generation_logits_go_with_the_tokens_that_are_sent() -> None:
    table = RANDOM + 10 * COUNT_UP
    executor = Executor(ScriptedModel(table=table))
    sampling = Sampling(stop_words=((12, 13, 60), (17, 18)))
    inbox = submit(executor, "a", (10,), max_tokens=20, sampling=sampling, generation_logits=True)
    drain(executor)
    found = [logits for logits in logits_of(inbox, "generation_logits") if logits is not None]

    assert inbox.tokens == [11, 12, 13, 14, 15, 16, 17, 18]
    assert [len(logits) for logits in found] == [len(event.tokens) for event in inbox]
    assert np.array_equal(np.concatenate(found), table[10:18])


def test_generation_logits_are_the_models_own_before_any_change() -> None:
    bias = np.zeros(VOCAB, np.float32)
    bias[40] = 50.0
    executor = Executor(ScriptedModel(table=RANDOM))
    inbox = submit(
        executor,
        name="a",
        prompt=(10,),
        max_tokens=1,
        sampling=Sampling(embedding_bias=bias, log_probs=True),
        generation_logits=True,
    )
    drain(executor)
    (event,) = inbox

    assert event.tokens == (40,)
    assert event.generation_logits is not None
    assert np.array_equal(event.generation_logits, RANDOM[10:11])
    assert event.log_probs[0] == pytest.approx(
        float(RANDOM[10, 40] - np.log(np.exp(RANDOM[10]).sum())), abs=1e-5
    )


def test_a_bias_of_another_size_than_the_vocabulary_is_refused_with_both_numbers() -> None:
    executor = Executor(ScriptedModel())
    sampling = Sampling(embedding_bias=np.zeros(VOCAB + 1, np.float32))
    with pytest.raises(BadInputError, match=r"embedding_bias has 65 values; .* model's 64 token"):
        submit(executor, "a", (1,), sampling=sampling)


def test_times_are_those_of_arrival_slot_first_and_last_token() -> None:
    now = [10.0]
    executor = Executor(ScriptedModel(slots=1), clock=lambda: now[0])
    inboxes: list[Any] = []
    for name in "ab":
        inboxes.append(submit(executor, name, (1,), max_tokens=2, timing=True))
        now[0] += 1.0
    for _ in range(4):
        executor.step()
        now[0] += 1.0
    stopped = submit(executor, "c", (1,), timing=True)
    executor.cancel("c")
    drain(executor)

    assert [inbox[-1].timing for inbox in (*inboxes, stopped)] == [
        Timing(10.0, 12.0, 12.0, 13.0),
        Timing(11.0, 14.0, 14.0, 15.0),
        Timing(16.0, None, None, None),
    ]
    assert [event.timing for event in inboxes[0][:-1]] == [Timing(10.0, 12.0, 12.0, 12.0)]


def test_stats_say_what_the_last_step_was_made_of() -> None:
    executor = Executor(ScriptedModel(slots=3), max_tokens_per_step=4)
    submit(executor, "a", (1,), max_tokens=9)
    executor.step()
    for name in "bcd":
        submit(executor, name, (1, 2), max_tokens=1)
    waiting = executor.stats()
    executor.step()
    busy = executor.stats()
    drain(executor)

    assert waiting == Stats(3, active=1, waiting=3, steps=1, prefilling=1, prefill_tokens=1)
    assert busy == Stats(
        slots=3, active=2, waiting=1, steps=2, generating=1, prefilling=2, prefill_tokens=3
    )
    assert executor.stats() == Stats(3, active=0, waiting=0, steps=9)


def test_the_last_event_of_the_last_sequence_frees_the_request_id() -> None:
    executor = Executor(ScriptedModel(slots=1))
    again: list[Event] = []

    def resubmit(event: Event) -> None:
        if event.finish_reason is not None and event.sequence == 1:
            executor.submit(Request("a", (8,), 1), again.append)

    executor.submit(Request("a", (1,), 1, sequences=2), resubmit)
    drain(executor)

    assert [event.tokens for event in again] == [(9,)]
