"""`minitron-trt bench` as a user types it, at a gateway before a double of Triton."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import Result
from tests.gateway.conftest import EchoDouble, Running, running_gateway
from tests.patience import PATIENCE_S, until

from minitron_trt.errors import RefusedError

Command = Callable[..., Result]
SMALL: Final = ("--isl", "4", "--osl", "3", "--request-count", "6")


@pytest.fixture(scope="module")
def double() -> Iterator[Running]:
    with running_gateway(EchoDouble()) as running:
        yield running


@pytest.fixture
def url(double: Running) -> str:
    double.triton.forget()
    return f"{double.url}/v1"


def told(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_load_is_told_as_aiperf_tells_it(command: Command, url: str) -> None:
    record = told(command("bench", "--url", url, *SMALL, "--concurrency", "2", "--json"))

    assert record["schema_version"] == "1.4"
    assert record["request_count"] == {"unit": "requests", "avg": 6}
    assert record["output_sequence_length"]["avg"] == 3
    assert record["time_to_first_token"].keys() == {
        *("unit", "avg", "min", "max", "std", "count", "sum"),
        *(f"p{at}" for at in (1, 5, 10, 25, 50, 75, 90, 95, 99)),
    }
    assert (record["was_cancelled"], record["is_complete"]) == (False, True)
    assert record["error_summary"] == []
    own = record["minitron_trt"]
    assert own["load"] == "concurrency 2"
    assert own["client_overhead"]["core_share"] > 0
    assert any(each["name"].startswith("minitron") for each in own["server_metrics"])


def test_a_table_has_every_figure(command: Command, url: str) -> None:
    result = command("bench", "--url", url, *SMALL, "--goodput", "request_latency:100000")

    assert result.exit_code == 0
    assert "Time to First Token" in result.stdout
    assert "Good Request Fraction" in result.stdout
    assert "of a core" in result.stdout


def test_an_open_loop_and_messages(command: Command, url: str, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    line = {"messages": [{"role": "user", "content": "Hi there"}], "timestamp": 3}
    prompts.write_text(json.dumps(line) + "\n")
    chat = ("bench", "--url", url, "--endpoint-type", "chat", "--input-file", prompts, "--json")

    by_rate = told(command(*chat, "--request-rate", "200", "--request-count", "4"))
    by_time = told(command(*chat, "--fixed-schedule"))

    assert (by_rate["request_count"]["avg"], by_time["request_count"]["avg"]) == (4, 1)


@pytest.mark.slow
def test_a_sweep_has_a_folder_each_and_a_report(command: Command, url: str, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    sweep = ("bench", "--url", url, *SMALL, "--sweep", "1,2", "--repeats", "2", "-o", folder)

    record = told(command(*sweep, "--json"))
    again = command(*sweep)
    table = command(*sweep, "--overwrite")

    assert [load["minitron_trt"]["load"] for load in record["loads"]] == [
        "concurrency 1",
        "concurrency 2",
    ]
    confidence = record["loads"][0]["minitron_trt"]["confidence"]["request_latency_p50"]
    assert confidence["ci_low"] < confidence["mean"] < confidence["ci_high"]
    assert again.exit_code == 2
    assert "already exists" in again.stderr
    assert table.exit_code == 0
    assert "±" in table.stdout
    assert sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
    ) == [
        "concurrency_1/profile_export.jsonl",
        "concurrency_1/profile_export_aiperf.json",
        "concurrency_2/profile_export.jsonl",
        "concurrency_2/profile_export_aiperf.json",
        "minitron.json",
        "report.html",
        "report.png",
    ]
    requests = (folder / "concurrency_2" / "profile_export.jsonl").read_text().splitlines()
    assert len(requests) == 12
    assert json.loads(requests[0])["metrics"]["time_to_first_token"]["unit"] == "ms"
    page = (folder / "report.html").read_text()
    assert "concurrency 2" in page
    assert "http" not in page.replace(url, "")
    assert '<svg class="chart"' in page


@pytest.mark.slow
def test_two_results_are_compared(command: Command, url: str, tmp_path: Path) -> None:
    folder, file = tmp_path / "a", tmp_path / "b.json"
    load = ("bench", "--url", url, *SMALL, "--repeats", "2")
    assert command(*load, "-o", folder).exit_code == 0
    file.write_text(command(*load, "--json").stdout)

    record = told(command("bench", "--compare", folder, file, "--json"))
    table = command("bench", "--compare", folder, file)

    latency = next(each for each in record["differences"] if each["metric"] == "request_latency")
    assert (latency["tested"], latency["unit"]) == ("runs", "ms")
    assert 0 <= latency["p_value"] <= 1
    assert "b is" in table.stdout


@pytest.mark.slow
def test_some_failures_are_told_and_no_answer_at_all_is_an_error(
    command: Command, url: str, double: Running, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a b"}\n{"prompt": "' + "long " * 300_000 + '"}\n')
    asked = ("bench", "--url", url, "--input-file", prompts, "--request-count", "2")

    record = told(command(*asked, "--json"))
    text = command(*asked)
    double.triton.error = RefusedError("the server refused the request: full")
    refused = command("bench", "--url", url, *SMALL, "-o", tmp_path / "none")

    [error] = record["error_summary"]
    assert (error["error_details"]["type"], error["count"]) == ("RefusedError", 1)
    assert "1 × RefusedError: the server refused the request" in text.stdout
    assert (refused.exit_code, refused.stderr.splitlines()[-1][:6]) == (7, "error:")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "arguments",
    [("--isl-stddev", "nan"), ("--osl-stddev", "inf"), ("--benchmark-duration", "inf")],
)
def test_numbers_without_an_end_are_refused(command: Command, arguments: tuple[str, str]) -> None:
    result = command("bench", *arguments)

    assert (result.exit_code, "is not a finite number" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--url", "grpc://127.0.0.1:1"), 6, "no Triton server answers"),
        (("--url", "http://127.0.0.1:1/v1"), 6, "no server answers at"),
        (("--endpoint-type", "chat"), 2, "is gRPC, and chat goes over HTTP"),
        (("--concurrency", "2", "--request-rate", "3"), 2, "are loads of their own"),
        (("--sweep", "1,1"), 2, "--sweep is '1,1'"),
        (("--sweep", "1,x"), 2, "--sweep is '1,x'"),
        (("--arrival-pattern", "constant"), 2, "give --request-rate"),
        (("--fixed-schedule",), 2, "give --input-file"),
        (("--goodput", "ttft:1"), 2, "no metric of a request"),
        (("--extra-inputs", "seed"), 2, "expected NAME:VALUE"),
        (("--extra-inputs", "colour:red"), 2, "colour is no option of a request"),
        (("--input-file", "absent.jsonl"), 3, "absent.jsonl cannot be read"),
        (("--tokenizer", "absent"), 3, "expected a tokenizer.json"),
        (("--metrics-url", "http://127.0.0.1:1/metrics"), 6, "no metrics answer"),
        (("--compare", "absent", "absent"), 3, "absent cannot be read"),
        (("--compare", ".", ".", "-o", "out"), 2, "--compare writes no folder"),
        (("--compare", ".", "."), 3, "expected a folder that bench -o or aiperf wrote"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    output = () if "--compare" in arguments else ("-o", "out")

    result = command("bench", *arguments, *output)

    assert (result.exit_code, message in result.stderr) == (code, True), result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("error:")]) == 1
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("content", ["3", "{}", '{"request_latency": 3}', "[" * 99_999, "\n"])
def test_a_result_that_is_none_is_refused(command: Command, tmp_path: Path, content: str) -> None:
    file = tmp_path / "a.json"
    file.write_text(content)

    result = command("bench", "--compare", file, file)

    assert (result.exit_code, str(file) in result.stderr) == (3, True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)
def test_what_was_measured_until_ctrl_c_is_told_and_written(
    url: str, double: Running, tmp_path: Path, stop: signal.Signals, code: int
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "one two"}\n' * 5 + '{"prompt": "stall and wait"}\n')
    arguments = ("bench", "--url", url, "--input-file", prompts, "-o", "out", "--json")
    process = subprocess.Popen(
        [sys.executable, "-m", "minitron_trt", *map(str, arguments)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    until(lambda: len(double.triton.requests) == 6)
    process.send_signal(stop)
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    record = json.loads(stdout)

    assert process.returncode == code, stderr
    assert stderr.splitlines()[-1] == "interrupted"
    assert record["request_count"]["avg"] == 5
    assert (record["was_cancelled"], record["is_complete"]) == (True, False)
    assert json.loads((tmp_path / "out" / "profile_export_aiperf.json").read_text()) == record
