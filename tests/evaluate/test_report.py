"""`eval report`: results of every kind in one page, and what is none of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from tests.gateway.chromium import PROGRAM, Browser, chromium

from minitron_trt.evaluate.tasks.task_record import (
    PublishedScore,
    TaskModel,
    TaskRecord,
    TaskScore,
)

pytest.importorskip("matplotlib", reason="NOT TESTED, matplotlib is not installed")

Command = Callable[..., Result]
ESTIMATE = {"value": 0.25, "error": 0.01}
VERIFIED: dict[str, Any] = {
    "precision": "w4a16",
    "kv_cache": "fp8",
    "tokens": 64,
    "bound": 0.4,
    "layers": [
        {"layer": at, "relative": 0.05 + at / 100, "largest": 3.0, "mean": 0.3, "cosine": 0.998}
        for at in range(3)
    ],
    "logits": {"largest": 0.8, "mean": 0.1, "cosine": 0.9997, "kl": 0.0042, "same_top": 0.9375},
    "fault": None,
}
PERPLEXITY: dict[str, Any] = {
    "models": [
        {
            "model": "bf16",
            "size_bytes": 3_000_000,
            "scored_tokens": 1530,
            "perplexity": {"value": 65.5, "error": 3.8},
            "accuracy": 1.0,
        },
        {
            "model": "<script>alert(1)</script>",
            "size_bytes": None,
            "scored_tokens": 1530,
            "perplexity": {"value": 65.75, "error": 3.9},
            "accuracy": 0.9962,
            "kl": {"value": -1e-9, "error": 0.0, "max": 1.0},
            "same_top": ESTIMATE,
        },
    ]
}


def tasks_record(model: str, task: str, value: float, *, published: float) -> dict[str, Any]:
    """Return what eval tasks prints of a task, which is beyond the published figure."""
    beside = PublishedScore(
        model="m", value=published, source="t", card_label="", standard_errors=-2.0, differs=True
    )
    score = TaskScore(
        task=task,
        metric="acc",
        filter="none",
        value=value,
        error=None,
        higher_is_better=True,
        shots=5,
        documents=3,
        of_documents=3,
        main=True,
        published=beside,
    )
    return TaskRecord("0.4.13", None, None, (TaskModel(model, "folder", (score,)),)).as_json()


TASKS = tasks_record("bf16", "mmlu", 0.592, published=0.605)
LM_EVAL: dict[str, Any] = {
    "results": {
        "arc": {"alias": "arc", "acc,none": 0.5, "acc_stderr,none": 0.02},
        "prose": {
            "alias": "prose",
            "byte_perplexity,none": 5.25,
            "byte_perplexity_stderr,none": "N/A",
        },
        "bits": {"bits_per_byte,none": 0.75},
        "sums": {"acc,none": 0.625, "sample_len": 8},
        "sums_easy": {"acc,none": 0.75},
        "alone": {"alias": "alone"},
        "alone_easy": {"acc,none": 0.875},
    },
    "n-shot": {"arc": 25},
    "higher_is_better": {"bits": {"bits_per_byte": False}},
    "group_subtasks": {"sums": ["sums_easy"], "alone": ["alone_easy"]},
    "model_name": "harness",
}


def load(concurrency: int) -> dict[str, Any]:
    """Return what bench prints of a load."""
    times = {"unit": "ms", "avg": 30.0, "p50": 20.0, "p99": 44.0 * concurrency}
    return {
        "schema_version": "1.4",
        "is_complete": concurrency != 2,
        "request_throughput": {"unit": "requests/sec", "avg": 2.0},
        "output_token_throughput": {"unit": "tokens/sec", "avg": 100.0 * concurrency},
        **dict.fromkeys(("time_to_first_token", "inter_token_latency", "request_latency"), times),
        "minitron_trt": {
            "load": f"concurrency {concurrency}",
            "settings": {"model": "ensemble"},
        },
    }


BENCH = {"loads": [load(1), load(2)]}


@pytest.fixture
def files(command: Command, tmp_path: Path) -> list[Path]:
    """Return a file of each kind; the plan is the command's own."""
    planned = command("plan", "minitron-4b", "--gpu", "H100", "--gpu", "L40S", "--json").stdout
    kinds = {"bench": BENCH, "tasks": TASKS, "lm-eval": LM_EVAL, "perplexity": PERPLEXITY}
    (tmp_path / "plan.json").write_text(planned)
    for name, record in {**kinds, "verify": VERIFIED}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    return [tmp_path / f"{name}.json" for name in (*kinds, "verify", "plan")]


@pytest.mark.slow
def test_results_are_joined_in_the_order_of_the_work(
    files: list[Path], command: Command, tmp_path: Path
) -> None:
    output = tmp_path / "report.html"
    result = command("eval", "report", *files, "-o", output, "--json")
    record = json.loads(result.stdout)
    page = output.read_text(encoding="utf-8")
    summaries = {each["title"]: each["summary"] for each in record["sections"]}

    assert (result.exit_code, result.stderr) == (0, "")
    order = ["Plan", "Verification", "Perplexity", "Tasks", "Load"]
    assert [title.split()[0] for title in summaries] == order
    assert summaries["Plan of minitron-4b"].startswith("recommended: fp8 on 1 × H100")
    assert "computes what its source does: layers within 0.07 (bound 0.4)" in page
    assert "bf16: mmlu 59.2; beyond the error of the published figure: mmlu of bf16" in page
    assert summaries["Load test of ensemble"].startswith("concurrency 2: 200 tokens/s")
    assert "<small>Bounds by bandwidth and arithmetic that no engine beats" in page
    assert "concurrency 2 (interrupted)" in page
    assert page.count('<svg class="chart"') == 6
    # It loads nothing from elsewhere, and names of models are no code.
    assert "http" not in page
    assert "<script" not in page
    assert "<td>0.000000</td>" in page


def test_a_figure_of_lm_eval_has_its_error_and_shots(
    files: list[Path], command: Command, tmp_path: Path
) -> None:
    output = tmp_path / "report.html"
    result = command("eval", "report", tmp_path / "lm-eval.json", "-o", output)
    row = "".join(f'<td class="text">{cell}</td>' for cell in ("harness", "arc", "acc"))

    assert result.exit_code == 0, result.stderr
    assert f"{row}<td>25</td><td>50.00</td><td>2.00</td><td></td>" in output.read_text()


@pytest.mark.parametrize("name", ["", None])
def test_a_model_that_lm_eval_gives_no_name_has_one(
    command: Command, tmp_path: Path, name: str | None
) -> None:
    path = tmp_path / "lm-eval.json"
    path.write_text(json.dumps({**LM_EVAL, "model_name": name}))
    result = command("eval", "report", path, "-o", tmp_path / "report.html")

    assert result.exit_code == 0, result.stderr
    assert "Tasks: model: arc 50.0" in result.stdout


def test_of_lm_evals_figures_shares_alone_are_in_percent_and_groups_stand_for_their_tasks(
    files: list[Path], command: Command, tmp_path: Path
) -> None:
    output = tmp_path / "report.html"
    result = command("eval", "report", tmp_path / "lm-eval.json", "-o", output)
    page = output.read_text()

    assert result.exit_code == 0, result.stderr
    assert "Tasks: harness: arc 50.0, sums 62.5, alone_easy 87.5\n" in result.stdout
    assert '<td class="text">byte_perplexity</td><td></td><td>5.2500</td>' in page
    assert '<td class="text">bits_per_byte</td><td></td><td>0.7500</td>' in page
    assert '<td class="text">sums: sums_easy</td>' in page


def test_what_eval_tasks_prints_is_read(command: Command, tmp_path: Path) -> None:
    path, output = tmp_path / "tasks.json", tmp_path / "report.html"
    path.write_text(json.dumps(tasks_record("w8a16", "winogrande", 0.59, published=0.6)))
    result = command("eval", "report", path, "-o", output)

    assert result.exit_code == 0, result.stderr
    assert "w8a16: winogrande 59.0; beyond the error of the published figure" in result.stdout
    assert "<td>5</td><td>59.00</td><td></td><td>60.0</td>" in output.read_text()


def test_a_fault_is_marked(command: Command, tmp_path: Path) -> None:
    path, output = tmp_path / "verify.json", tmp_path / "report.html"
    path.write_text(json.dumps({**VERIFIED, "fault": "layer 1 departs: gate and up are swapped"}))
    result = command("eval", "report", path, "-o", output)

    assert result.exit_code == 0, result.stderr
    assert '<span class="bad">✗</span> layer 1 departs: gate and up are swapped' in (
        output.read_text(encoding="utf-8")
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "Input data was truncated"),
        ("[1]", "Expected `object`, got `array`"),
        ('{"a": 1, "b": 2}', "it has a, b"),
        ("{}", "it has nothing"),
        (json.dumps({**VERIFIED, "bound": "much"}), "Expected `float`, got `str` - at `$.bound`"),
        (json.dumps({"models": [{"model": "m"}]}), "missing required field"),
        (json.dumps({"models": []}), "length >= 1"),
        (json.dumps(PERPLEXITY).replace("65.75", "0"), "has a perplexity of 0.0; expected 1 or"),
        (json.dumps({"loads": [1]}), "Expected `object`"),
        (json.dumps({"results": {"t": 1}}), "Expected `object`"),
        (json.dumps({**TASKS, "version": 2}), "it has kind 'eval tasks', version 2; expected"),
        (json.dumps({**TASKS, "models": []}), "length >= 1"),
        ('{"layers": NaN}', "JSON is malformed"),
    ],
)
def test_what_is_no_result_is_refused_in_one_line(
    content: str, reason: str, command: Command, tmp_path: Path
) -> None:
    path, output = tmp_path / "file.json", tmp_path / "report.html"
    path.write_text(content)
    result = command("eval", "report", path, "-o", output)

    assert (result.exit_code, result.stderr.count("\n")) == (3, 1)
    assert f"error: {path} is not what plan, verify" in result.stderr
    assert reason in result.stderr
    assert not output.exists()


def test_a_folder_without_results_and_a_file_that_is_not_there_are_refused(
    command: Command, tmp_path: Path
) -> None:
    results = [
        command("eval", "report", path, "-o", tmp_path / "report.html")
        for path in (tmp_path, tmp_path / "absent.json")
    ]

    assert [result.exit_code for result in results] == [3, 3]
    assert "is a folder without profile_export_aiperf.json" in results[0].stderr
    assert "absent.json" in results[1].stderr


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser without a screen."""
    with chromium(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.mark.slow
@pytest.mark.skipif(PROGRAM is None, reason="needs Debian's chromium, which is not there")
def test_the_page_is_readable_in_light_in_dark_and_on_a_phone(
    files: list[Path], command: Command, browser: Browser, tmp_path: Path
) -> None:
    output = tmp_path / "report.html"
    command("eval", "report", *files, "-o", output)
    browser.resize(390, 844, is_phone=True)
    colours = {}
    for scheme in ("light", "dark"):
        browser.prefer(scheme)
        browser.open(output.as_uri())
        words = "getComputedStyle(document.querySelector('svg.chart text')).fill"
        colours[scheme] = browser.value(words)

    assert colours == {"light": "rgb(0, 0, 0)", "dark": "rgb(255, 255, 255)"}
    assert browser.value("document.documentElement.scrollWidth") == 390
    assert browser.console == []
    pdf = browser.call("Page.printToPDF")["data"]
    assert pdf.startswith("JVBERi")


def test_pages_are_made_of_what_bench_wrote(command: Command, tmp_path: Path) -> None:
    for concurrency in (10, 2):
        folder = tmp_path / "bench" / f"concurrency_{concurrency}"
        folder.mkdir(parents=True)
        (folder / "profile_export_aiperf.json").write_text(json.dumps(load(concurrency)))
    output = tmp_path / "report.html"
    result = command("eval", "report", tmp_path / "bench", "-o", output)
    page = output.read_text(encoding="utf-8")

    assert result.exit_code == 0, result.stderr
    assert page.index('text">concurrency 2 ') < page.index('text">concurrency 10<')
