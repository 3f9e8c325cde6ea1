"""When a load sends its requests, on a clock that takes no time."""

from __future__ import annotations

import statistics

import pytest
from tests.loadtest.doubles import TimedTarget, VirtualLoop, in_virtual_time, questions, run_of

from minitron_trt.errors import ServerError, UsageError
from minitron_trt.loadtest.load_pattern import CONSTANT, LoadPattern
from minitron_trt.loadtest.load_run import LoadRun
from minitron_trt.loadtest.load_test import LoadTest
from minitron_trt.loadtest.request_record import RequestRecord
from minitron_trt.loadtest.workload import Question, WordCounter


def sent_s(run: LoadRun) -> list[float]:
    return [round(record.start_ns / 1e9, 6) for record in run.records]


def test_a_closed_loop_has_so_many_requests_under_way() -> None:
    target = TimedTarget()
    run = run_of(target, LoadPattern(concurrency=3, request_count=7))

    assert target.most == 3
    assert sent_s(run) == [0, 0, 0, 2, 2, 2, 4]
    assert [record.latency_ns for record in run.records] == [2_000_000_000] * 7


def test_an_open_loop_sends_whether_answers_come_or_not() -> None:
    target = TimedTarget(gaps_s=(100.0,))
    run = run_of(target, LoadPattern(request_rate=4, arrival=CONSTANT, request_count=5))

    assert sent_s(run) == [0, 0.25, 0.5, 0.75, 1.0]
    assert target.most == 5


def test_poisson_arrivals_have_the_rate_and_its_spread() -> None:
    run = run_of(TimedTarget(), LoadPattern(request_rate=50, request_count=2000))
    gaps = [b - a for a, b in zip(sent_s(run), sent_s(run)[1:], strict=False)]

    # Of exponential gaps, mean and deviation are the same.
    assert statistics.mean(gaps) == pytest.approx(1 / 50, rel=0.1)
    assert statistics.stdev(gaps) == pytest.approx(1 / 50, rel=0.1)


def test_a_trace_is_sent_by_its_own_times() -> None:
    loop = VirtualLoop()
    asked = [Question("a", 3, 0.0), Question("b", 3, 0.7), Question("c", 3, 1.9)]
    run = LoadRun(TimedTarget(), asked, LoadPattern(), clock=loop.now_ns)
    in_virtual_time(loop, run.run())

    assert sent_s(run) == [0, 0.7, 1.9]


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        (LoadPattern(concurrency=2, duration_s=5), 6),
        (LoadPattern(request_rate=2, arrival=CONSTANT, duration_s=5), 10),
        (LoadPattern(concurrency=2, duration_s=5, request_count=3), 3),
    ],
    ids=["closed", "open", "count first"],
)
def test_a_time_ends_the_sending_and_not_the_answers(pattern: LoadPattern, count: int) -> None:
    run = run_of(TimedTarget(), pattern)

    assert len(run.records) == count
    assert all(record.is_valid for record in run.records)


def test_a_failure_is_kept_and_does_not_end_the_load() -> None:
    run = run_of(TimedTarget(failing=frozenset({"1"})), LoadPattern(concurrency=1, request_count=3))

    assert [str(record.error) for record in run.records] == ["None", "the double fails", "None"]


def test_a_server_that_is_gone_is_not_asked_without_a_pause() -> None:
    target = TimedTarget(failing=frozenset(map(str, range(100))))
    run_of(target, LoadPattern(concurrency=2, duration_s=1))

    assert len(target.asked) == 20


def test_an_answer_without_text_is_a_failure() -> None:
    run = run_of(TimedTarget(gaps_s=()), LoadPattern(concurrency=1, request_count=1))

    assert [str(record.error) for record in run.records] == ["the answer has no text"]


def test_what_no_request_can_be_ends_the_load() -> None:
    class Choosy(TimedTarget):
        async def ask(self, question: Question, record: RequestRecord) -> None:
            raise UsageError("messages")

    with pytest.raises(UsageError, match="messages"):
        run_of(Choosy(), LoadPattern(concurrency=2, request_count=3))


def load_test(target: TimedTarget, **options: object) -> LoadTest:
    test = LoadTest(
        target,
        patterns=[LoadPattern(concurrency=users, request_count=4) for users in (1, 2)],
        **{"workload": lambda run: questions(10), **options},  # type: ignore[arg-type]
    )
    in_virtual_time(VirtualLoop(), test.run())
    return test


def test_each_load_is_warmed_up_and_repeated() -> None:
    target = TimedTarget(gaps_s=(0.0,))
    test = load_test(target, repeats=3, warmup=2)

    assert len(target.asked) == 2 * (2 + 3 * 4)
    assert [len(result.records) for result in test.results] == [12, 12]
    assert all(result.is_complete for result in test.results)
    assert ("request_latency", "p99") in test.results[0].intervals


def test_each_run_asks_its_own_questions_in_the_next_load_too() -> None:
    numbers: list[int] = []

    def workload(number: int) -> list[Question]:
        numbers.append(number)
        return questions(10)

    load_test(TimedTarget(), workload=workload, repeats=2, warmup=1)

    assert numbers == [-1, 0, 1, -1, 2, 3]


def test_tokens_that_the_server_does_not_count_are_counted_of_the_whole_text() -> None:
    class Uncounted(TimedTarget):
        async def ask(self, question: Question, record: RequestRecord) -> None:
            record.begin()
            for piece in ("so", "lar sys", "tem"):
                record.piece(piece)

    test = load_test(Uncounted(), counter=WordCounter())
    test.count_tokens()

    records = test.results[0].records
    assert [record.counted_tokens for record in records] == [2] * 4
    assert [record.texts for record in records] == [None] * 4


def test_errors_are_counted_by_kind_and_words() -> None:
    test = load_test(TimedTarget(failing=frozenset({"0", "3"})))

    assert test.results[0].errors() == {(ServerError.__name__, "the double fails"): 2}
