"""lm-eval itself asks: models of all kinds answer as its own model of Hugging Face folders does."""

from __future__ import annotations

import json
import pickle
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.convert.conftest import write_gguf as write_gguf
from tests.lm_eval_runs import DEFINITIONS, LOCAL, NEEDED, eval_tasks, run_module, values_of

from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.samples import sample_folder

pytestmark = [pytest.mark.slow, NEEDED]

SAMPLE = sample_folder("solar-llama")
Samples = dict[tuple[str, int], list[Any]]


def samples_in(folder: Path) -> Samples:
    """Return what a model answered, by task and question, of the files that lm_eval writes."""
    samples: Samples = {}
    for path in folder.glob("samples_*.jsonl"):
        task = path.name.removeprefix("samples_").rpartition("_")[0]
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            samples[task, record["doc_id"]] = record["resps"]
    return samples


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lm_eval") / "checkpoint"
    convert(str(SAMPLE), folder, ConvertOptions(tp=2, pp=2))
    return folder


def numbers(samples: Samples, task: str) -> list[float]:
    return [
        float(np.ravel(answer)[0])
        for key in sorted(samples)
        if key[0] == task
        for answer in samples[key]
    ]


def answers_of_hf(output: Path) -> tuple[dict[tuple[str, str], float], Samples]:
    """Return the figures and the samples of lm-eval's own model of the sample's folder."""
    run = run_module(
        "lm_eval",
        "--model=hf",
        f"--model_args=pretrained={SAMPLE},dtype=float32,max_length=512",
        "--device=cpu",
        "--batch_size=8",
        "--include_path=.",
        *LOCAL,
        f"--output_path={output}",
        "--log_samples",
    )
    assert run.returncode == 0, run.stderr[-2000:]
    [folder] = output.iterdir()
    [results] = folder.glob("results_*.json")
    found = json.loads(results.read_text())["results"]
    figures = {
        (task, metric): found[task][f"{metric},{filtered}"]
        for task, metric, filtered in (
            ("persuasion_next", "acc", "none"),
            ("persuasion_next", "acc_norm", "none"),
            ("persuasion_bytes", "byte_perplexity", "none"),
            ("solar_rest", "exact_match", "words"),
        )
    }
    return figures, samples_in(folder)


def test_models_of_all_kinds_answer_as_lm_evals_own_does(
    checkpoint: Path, write_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    file = write_gguf(SAMPLE, tmp_path / "model.gguf", "F32")
    sources = (SAMPLE, checkpoint, file)
    expected, theirs = answers_of_hf(tmp_path / "hf")
    result = eval_tasks(*sources, *LOCAL, "--json", "-o", tmp_path / "own")

    assert result.returncode == 0, result.stderr
    assert 0 < expected["solar_rest", "exact_match"] < 1
    record = json.loads(result.stdout)
    assert [model["source"] for model in record["models"]] == [str(each) for each in sources]
    for model in record["models"]:
        found = values_of(model)
        assert found == pytest.approx(expected, rel=1e-4), model["source"]
        [place] = [
            path
            for path in (tmp_path / "own").iterdir()
            if path.name == model["source"].replace("/", "__")
        ]
        ours = samples_in(place)
        assert sorted(ours) == sorted(theirs)
        for task in ("persuasion_next", "persuasion_bytes"):
            assert numbers(ours, task) == pytest.approx(numbers(theirs, task), abs=1e-4)
        assert [ours[key] for key in ours if key[0] == "solar_rest"] == [
            theirs[key] for key in ours if key[0] == "solar_rest"
        ]


def test_lm_evals_own_command_knows_the_model(checkpoint: Path, tmp_path: Path) -> None:
    arguments = ("--model=minitron-trt", "--tasks=persuasion_next", "--include_path=.")
    result = run_module(
        "minitron_trt.evaluate.tasks",
        *arguments,
        f"--model_args=pretrained={checkpoint},max_length=512",
        "--limit=3",
        f"--output_path={tmp_path}",
    )
    absent = run_module(
        "minitron_trt.evaluate.tasks", *arguments, f"--model_args=pretrained={tmp_path}/absent"
    )

    assert result.returncode == 0, result.stderr[-2000:]
    assert "|persuasion_next|" in result.stdout
    [results] = tmp_path.glob("*/results_*.json")
    assert json.loads(results.read_text())["model_source"] == "minitron-trt"
    assert absent.returncode == 3
    assert absent.stderr.splitlines()[-1].startswith(f"error: {tmp_path}/absent")
    assert "Traceback" not in absent.stderr


def test_what_was_answered_is_not_asked_again(checkpoint: Path, tmp_path: Path) -> None:
    arguments = (checkpoint, "--tasks", "solar_rest", "--json", "--use-cache", tmp_path / "kept")
    first = eval_tasks(*arguments)
    [path] = (tmp_path / "kept").iterdir()
    with sqlite3.connect(path) as database:
        kept = dict(database.execute("SELECT key, value FROM unnamed"))
        for key in kept:
            wrong = pickle.dumps("something else")
            database.execute("UPDATE unnamed SET value = ? WHERE key = ?", (wrong, key))
    database.close()
    second = eval_tasks(*arguments)

    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert len(kept) == 12
    values = [
        json.loads(result.stdout)["models"][0]["tasks"][0]["value"] for result in (first, second)
    ]
    assert values[0] > 0
    assert values[1] == 0


def test_a_definition_of_ours_asks_and_scores_as_it_says(checkpoint: Path, tmp_path: Path) -> None:
    articles = [{"text": f"Article {n} says much.", "summary": f"It says {n}."} for n in range(25)]
    data = tmp_path / "articles.jsonl"
    data.write_text("".join(json.dumps(article) + "\n" for article in articles))
    ours = DEFINITIONS.parents[3] / "evaluate" / "tasks" / "definitions" / "minitron_xlsum.yaml"
    (tmp_path / "local_xlsum.yaml").write_text(
        f"include: {ours}\ntask: local_xlsum\ndataset_path: json\ndataset_name: null\n"
        f"dataset_kwargs:\n  data_files:\n    validation: {data}\n    test: {data}\n"
    )
    result = eval_tasks(
        checkpoint,
        "--tasks=local_xlsum",
        f"--include-path={tmp_path}",
        f"--output-path={tmp_path / 'out'}",
        "--json",
    )

    assert result.returncode == 0, result.stderr
    scores = json.loads(result.stdout)["models"][0]["tasks"]
    assert [score["metric"] for score in scores] == ["rougeL", "rouge1", "rouge2"]
    assert {score["shots"] for score in scores} == {3}
    assert {score["of_documents"] for score in scores} == {5}
    [path] = (tmp_path / "out").glob("*/samples_*.jsonl")
    record = json.loads(path.read_text().splitlines()[0])
    prompt = record["arguments"]["gen_args_0"]["arg_0"]
    assert prompt.count("Article: Article") == 4
    assert prompt.endswith("Article: Article 0 says much.\nSummary:")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("task: [mine\n", "while parsing"),
        ("task: &a [*a]\n", "an alias *a; write out what it stands for"),
    ],
)
def test_a_file_that_defines_no_task_is_named(
    text: str, said: str, checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    result = eval_tasks(checkpoint, "--tasks", path)

    assert (result.returncode, result.stderr.count("\n")) == (3, 1), result.stderr
    assert result.stderr.startswith(f"error: {path} is no definition of a task ({said}")


def damaged(folder: Path) -> None:
    """Make a checkpoint's output matrix NaN, in place: its manifest knows the size of files."""
    path = folder / "rank3.safetensors"
    blob = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(blob[:8], "little")
    begin, end = json.loads(blob[8:start])["lm_head.weight"]["data_offsets"]
    blob[start + begin : start + end] = b"\xc0\x7f" * ((end - begin) // 2)
    path.write_bytes(blob)


@pytest.mark.parametrize(
    ("change", "arguments", "code", "message"),
    [
        (None, ("--tasks", "persuasion_nex"), 2, "no task 'persuasion_nex'"),
        (None, ("--tasks", "hellaswag"), 3, "the data of the task hellaswag cannot be had"),
        (None, ("--tasks", "humaneval"), 2, "consent with --confirm-run-unsafe-code"),
        (None, ("--preset", "minitron", "--limit", "1"), 3, "the data of the task mmlu cannot be"),
        (
            None,
            ("--tasks", "minitron_mbpp", "--confirm-run-unsafe-code"),
            2,
            "wants HF_ALLOW_CODE_EVAL=1",
        ),
        (damaged, ("--tasks", "persuasion_next"), 3, "logits are NaN"),
        (damaged, ("--tasks", "solar_rest"), 3, "an answer could not be generated"),
        (
            None,
            ("--tasks", "solar_rest", "--apply-chat-template"),
            3,
            "has no chat template; leave --apply-chat-template out",
        ),
        (None, ("--tasks", "solar_rest", "--gen-kwargs", "num_beams=4"), 2, "'num_beams' is no op"),
    ],
    ids=[
        "unknown task",
        "no data",
        "no consent",
        "preset without data",
        "half a consent",
        "NaN scored",
        "NaN generated",
        "no template",
        "unknown option",
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    change: Callable[[Path], None] | None,
    arguments: tuple[str, ...],
    code: int,
    message: str,
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, folder)
    if change is not None:
        change(folder)
    result = eval_tasks(folder, *arguments, HF_HOME=str(tmp_path / "hub"))

    assert (result.returncode, result.stderr.count("\n")) == (code, 1), result.stderr
    assert message in result.stderr
    assert result.stdout == ""
