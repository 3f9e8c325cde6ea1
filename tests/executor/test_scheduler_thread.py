"""An executor on a thread of its own: many submitters, cancelling, closing, sleeping."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from tests.executor.doubles import Inbox, ScriptedModel, drain, submit
from tests.patience import PATIENCE_S

from minitron_trt.errors import RefusedError
from minitron_trt.executor import Event, Executor, FinishReason, Request, StepBatch
from minitron_trt.executor.step import Floats


@pytest.fixture
def running() -> Iterator[Executor]:
    with Executor(ScriptedModel(slots=4, max_seq_len=10**9)) as executor:
        yield executor


def test_a_thread_of_its_own_serves_many_submitters(running: Executor) -> None:
    done = threading.Semaphore(0)
    inboxes = {str(n): Inbox() for n in range(40)}

    def client(names: list[str]) -> None:
        for name in names:

            def on_event(event: Event, name: str = name) -> None:
                inboxes[name](event)
                if event.finish_reason is not None:
                    done.release()

            running.submit(Request(name, (int(name),), 3), on_event)

    threads = [threading.Thread(target=client, args=(list(inboxes)[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert all(done.acquire(timeout=PATIENCE_S) for _ in inboxes)
    assert {name: inbox.tokens for name, inbox in inboxes.items()} == {
        name: [int(name) + n for n in (1, 2, 3)] for name in inboxes
    }


def test_closing_ends_what_is_outstanding_as_cancelled() -> None:
    executor = Executor(ScriptedModel(slots=1, max_seq_len=10**9))
    executor.start()
    started = threading.Event()
    inbox = Inbox()

    def on_event(event: Event) -> None:
        inbox(event)
        started.set()

    executor.submit(Request("a", (1,), 10**8), on_event)
    queued = submit(executor, "b", (1,))
    assert started.wait(PATIENCE_S)
    executor.close()
    executor.close()

    assert inbox.reason is FinishReason.CANCELLED
    assert queued == [Event((), finish_reason=FinishReason.CANCELLED)]
    with pytest.raises(RefusedError, match="the executor is closed"):
        submit(executor, "c", (1,))


def test_a_callback_may_close_the_executor() -> None:
    executor = Executor(ScriptedModel())
    other = Inbox()
    executor.submit(Request("a", (1,), 5), lambda event: executor.close())
    executor.submit(Request("b", (1,), 5), other)
    drain(executor)

    assert other.reason is FinishReason.CANCELLED


@dataclass
class SlowModel(ScriptedModel):
    """A ScriptedModel whose steps wait to be let through."""

    gate: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def step(self, batch: StepBatch) -> Floats:
        self.entered.release()
        assert self.gate.acquire(timeout=PATIENCE_S)
        return super().step(batch)


@pytest.mark.parametrize("how", ["cancel", "poll"])
def test_cancelling_during_a_slow_step_frees_the_slot_before_the_next(how: str) -> None:
    model = SlowModel(slots=1)
    left: list[bool] = []
    with Executor(model) as executor:
        victim = submit(executor, "v", (1,), max_tokens=50, is_cancelled=lambda: bool(left))
        waiting = submit(executor, "w", (40,), max_tokens=1)
        assert model.entered.acquire(timeout=PATIENCE_S)
        executor.cancel("v") if how == "cancel" else left.append(True)
        model.gate.release()
        assert model.entered.acquire(timeout=PATIENCE_S)
        model.gate.release()
        while not waiting:
            time.sleep(0.001)

    assert (victim.tokens, victim.reason) == ([2], FinishReason.CANCELLED)
    assert waiting.tokens == [41]
    assert model.batches == [{0: [1]}, {0: [40]}]


def test_an_idle_executor_sleeps() -> None:
    looks: list[float] = []

    def clock() -> float:
        looks.append(0.0)
        return 0.0

    done = threading.Semaphore(0)
    with Executor(ScriptedModel(), clock=clock) as executor:
        for name in "ab":
            executor.submit(Request(name, (1,), 1), lambda event: done.release())
            assert done.acquire(timeout=PATIENCE_S)
        time.sleep(0.05)

    assert looks == [0.0] * 6  # one for each request as it came, two for its step
