"""Figures against what they are by definition, on requests whose times are given."""

from __future__ import annotations

from array import array

import numpy as np
import pytest

from minitron_trt.errors import ServerError, UsageError
from minitron_trt.loadtest.load_test import UNITS
from minitron_trt.loadtest.metrics import (
    REQUEST_METRICS,
    RUN_METRICS,
    GoodputLimits,
    figures_of,
    summary,
    values_of,
)
from minitron_trt.loadtest.request_record import RequestRecord

MS = 1_000_000


def record(
    *pieces_ms: int,
    start_ms: int = 0,
    tokens: int | None = None,
    at_first: int | None = None,
    prompt: int | None = 10,
) -> RequestRecord:
    """Return a request that was due at 0, whose pieces came after so many milliseconds."""
    return RequestRecord(
        index=0,
        due_ns=0,
        start_ns=start_ms * MS,
        pieces_ns=array("q", [(start_ms + at) * MS for at in pieces_ms]),
        end_ns=(start_ms + max(pieces_ms, default=0) + 5) * MS,
        input_tokens=prompt,
        counted_tokens=tokens,
        tokens_at_first=at_first,
    )


def failed() -> RequestRecord:
    request = record(1)
    request.error = ServerError("gone")
    return request


def of(request: RequestRecord) -> dict[str, list[float]]:
    return {metric.tag: list(values_of([request], metric)) for metric in REQUEST_METRICS}


def test_a_request_has_aiperfs_figures() -> None:
    assert of(record(100, 150, 210, 300, start_ms=2, tokens=5)) == {
        "time_to_first_token": [100],
        "time_to_second_token": [50],
        "request_latency": [300],
        # 200 ms between first and last piece, and four tokens after the first.
        "inter_token_latency": [50],
        "inter_chunk_latency": [50, 60, 90],
        "decode_duration": [200],
        "output_token_throughput_per_user": [20],
        "e2e_output_token_throughput": [pytest.approx(5 / 0.3)],
        "prefill_throughput_per_user": [100],
        "output_sequence_length": [5],
        "input_sequence_length": [10],
        "credit_to_start_latency": [2],
        "effective_latency": [307],
    }


def test_tokens_of_the_first_piece_are_not_those_after_it() -> None:
    # As aiperf with --per-chunk-usage, where the server tells how many there were.
    assert of(record(100, 300, tokens=9, at_first=5))["inter_token_latency"] == [50]


def test_an_answer_in_one_piece_has_no_gaps() -> None:
    figures = of(record(100, tokens=8))

    assert figures["inter_token_latency"] == figures["output_token_throughput_per_user"] == []
    assert figures["time_to_second_token"] == figures["inter_chunk_latency"] == []


def test_pieces_are_counted_where_the_server_does_not() -> None:
    assert of(record(1, 2, 3, prompt=None))["output_sequence_length"] == [3]


def test_percentiles_are_interpolated_and_the_deviation_is_of_all() -> None:
    values = np.arange(1.0, 11.0)

    found = summary(values)

    assert found["p50"] == 5.5
    assert found["p99"] == pytest.approx(9.91)
    assert found["std"] == pytest.approx(2.8722813)
    assert (found["count"], found["sum"], found["min"], found["max"]) == (10, 55, 1, 10)


def test_a_run_lasts_from_its_first_request_to_its_last_piece() -> None:
    run = [record(100, 500, tokens=2), record(100, 900, start_ms=100, tokens=6), failed()]

    figures = figures_of([run], limits=GoodputLimits({"request_latency": 600}), streams=True)

    assert {tag: figures[tag]["avg"] for tag in RUN_METRICS} == {
        "request_throughput": 2,
        "request_count": 2,
        "output_token_throughput": 8,
        "total_token_throughput": 28,
        "total_osl": 8,
        "total_isl": 20,
        "benchmark_duration": 1,
        "goodput": 1,
        "good_request_count": 1,
        "good_request_fraction": pytest.approx(1 / 3),
        "error_request_count": 1,
        "completed_request_count": 3,
        "request_error_rate": pytest.approx(100 / 3),
        "effective_concurrency": pytest.approx(1.4),
    }


def test_runs_are_pooled() -> None:
    run = [record(100, 500, tokens=2)]

    figures = figures_of([run, run], limits=None, streams=True)

    assert figures["benchmark_duration"]["avg"] == 1
    assert figures["request_latency"]["count"] == 2


def test_whole_answers_have_no_figures_of_streams() -> None:
    figures = figures_of([[record(100, tokens=4)]], limits=None, streams=False)

    assert "time_to_first_token" not in figures
    assert figures["request_latency"]["avg"] == 100


def test_a_run_without_an_answer_has_counts_only() -> None:
    figures = figures_of([[failed()]], limits=None, streams=True)

    assert {tag: values["avg"] for tag, values in figures.items()} == {
        "request_count": 0,
        "error_request_count": 1,
        "completed_request_count": 1,
        "request_error_rate": 100,
    }


def test_a_run_without_an_answer_has_no_share_of_good_ones() -> None:
    figures = figures_of([[failed()]], limits=GoodputLimits({"request_latency": 600}), streams=True)

    assert figures["good_request_fraction"]["avg"] == 0
    assert "goodput" not in figures


@pytest.mark.parametrize(
    ("limits", "good"),
    [
        ("time_to_first_token:100", True),
        ("time_to_first_token:99.9", False),
        ("time_to_first_token:100 inter_token_latency:49", False),
        ("output_token_throughput_per_user:20", True),
        ("output_token_throughput_per_user:21", False),
    ],
)
def test_a_good_request_keeps_every_limit(limits: str, good: bool) -> None:
    assert GoodputLimits.parse(limits).are_kept(record(100, 200, 300, tokens=5)) is good


def test_a_request_without_the_limited_figure_is_not_good() -> None:
    assert not GoodputLimits.parse("inter_token_latency:50").are_kept(record(100, tokens=1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ttft:3", "--goodput has 'ttft'"),
        ("time_to_first_tokens:3", "did you mean 'time_to_first_token'?"),
        ("request_latency:fast", "expected METRIC:NUMBER"),
        ("request_latency:nan", "expected METRIC:NUMBER"),
        ("request_latency:inf", "expected METRIC:NUMBER"),
        (" ", "--goodput is empty"),
    ],
)
def test_a_limit_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        GoodputLimits.parse(text)


def test_every_figure_has_a_unit() -> None:
    assert set(UNITS) == {*(metric.tag for metric in REQUEST_METRICS), *RUN_METRICS}
