"""Two results side by side: what is tested by what, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minitron_trt.errors import BadInputError
from minitron_trt.loadtest.result_comparison import (
    REQUESTS,
    RUNS,
    Difference,
    compare_results,
    read_loads,
)


def metrics(latency: float, throughput: float) -> dict[str, Any]:
    return {
        "request_latency": {"unit": "ms", "avg": latency, "p50": latency, "p99": latency},
        "request_throughput": {"unit": "requests/sec", "avg": throughput},
    }


def result(folder: Path, *runs: float, label: str = "", requests: tuple[float, ...] = ()) -> Path:
    """Write a folder as aiperf does; what has a label has its runs, too, as those of bench."""
    folder.mkdir(parents=True)
    mean = sum(runs) / len(runs)
    record = metrics(mean, 1000 / mean)
    if label:
        own = {"load": label, "runs": [metrics(run, 1000 / run) for run in runs]}
        record["minitron_trt"] = own
    (folder / "profile_export_aiperf.json").write_text(json.dumps(record))
    lines = [{"metrics": {"request_latency": {"value": each, "unit": "ms"}}} for each in requests]
    if lines:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "profile_export.jsonl").write_text(text)
    return folder


def verdicts(a: Path, b: Path) -> dict[tuple[str, str], tuple[str | None, str]]:
    differences = compare_results(read_loads(a), read_loads(b))
    return {(each.tag, each.name): (each.tested, each.verdict) for each in differences}


def test_runs_are_compared_where_there_are_several(tmp_path: Path) -> None:
    a = result(tmp_path / "a", 100, 101, 99, label="concurrency 1")
    b = result(tmp_path / "b", 80, 81, 79, label="concurrency 1")

    found = verdicts(a, b)

    # A latency that is lower and a throughput that is higher are both better.
    assert found == dict.fromkeys(found, (RUNS, "better"))
    assert set(verdicts(b, a).values()) == {(RUNS, "worse")}
    assert set(verdicts(a, a).values()) == {(RUNS, "no difference shown")}


@pytest.mark.slow
def test_of_single_runs_requests_are_compared_also_aiperfs(tmp_path: Path) -> None:
    slow = result(tmp_path / "a", 100, requests=tuple(range(90, 110)))
    fast = result(tmp_path / "b", 50, requests=tuple(range(40, 60)))

    found = verdicts(slow, fast)

    assert found["request_latency", "avg"] == (REQUESTS, "better")
    assert found["request_throughput", "avg"] == (None, "not tested")


def test_loads_are_compared_with_their_like(tmp_path: Path) -> None:
    for side in ("a", "b"):
        for users in (10, 2):
            label = f"concurrency {users}"
            result(tmp_path / side / label.replace(" ", "_"), 100, 101, label=label)
    result(tmp_path / "b" / "concurrency_3", 5, 6, label="concurrency 3")

    differences = compare_results(read_loads(tmp_path / "a"), read_loads(tmp_path / "b"))

    assert list(dict.fromkeys(each.load for each in differences)) == [
        "concurrency 2",
        "concurrency 10",
    ]


def test_loads_that_are_all_others_are_refused(tmp_path: Path) -> None:
    for users in (1, 2):
        result(tmp_path / "a" / f"concurrency_{users}", 100, label=f"concurrency {users}")
        result(tmp_path / "b" / f"concurrency_{users}", 100, label=f"concurrency {users + 2}")

    with pytest.raises(BadInputError, match="no load in common: concurrency 1, concurrency 2 and"):
        compare_results(read_loads(tmp_path / "a"), read_loads(tmp_path / "b"))


def test_requests_that_are_damaged_are_refused_by_their_line(tmp_path: Path) -> None:
    folder = result(tmp_path / "a", 100, requests=(1, 2))
    with (folder / "profile_export.jsonl").open("a") as file:
        file.write('{"metrics": 3}\n')

    with pytest.raises(BadInputError, match=r"profile_export\.jsonl cannot be read at line 3"):
        read_loads(folder)


def test_a_change_from_nothing_has_no_share() -> None:
    assert Difference("", "goodput", "avg", a=0.0, b=3.0).change is None
