"""`eval tasks` without lm-eval: what it refuses, and its table."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from click.testing import Result

from minitron_trt.evaluate.tasks.command import tasks
from minitron_trt.evaluate.tasks.presets import PUBLISHED, TASK_PRESETS
from minitron_trt.evaluate.tasks.results_table import as_text
from minitron_trt.evaluate.tasks.task_record import (
    PublishedScore,
    TaskModel,
    TaskRecord,
    TaskScore,
)

Command = Callable[..., Result]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing is asked; pass --preset minitron, or --tasks with names"),
        (("--tasks", " , "), "nothing is asked"),
        (("--preset", "minitron", "--num-fewshot", "3"), "--num-fewshot is for --tasks"),
        (("--preset", "all"), "'all' is not one of 'minitron', 'minitron-no-code'"),
    ],
    ids=["nothing", "commas", "shots of a preset", "unknown preset"],
)
def test_what_makes_no_sense_is_a_usage_error(
    arguments: tuple[str, ...], message: str, command: Command
) -> None:
    result = command("eval", "tasks", "checkpoint", *arguments)

    assert result.exit_code == 2
    assert message in result.stderr


def test_without_lm_eval_the_extra_is_named(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    result = command("eval", "tasks", "checkpoint", "--preset", "minitron")

    assert result.exit_code == 4
    assert result.stderr == (
        "error: eval tasks needs lm-eval, which is not installed; run: "
        "pip install 'minitron-trt[tasks]'\n"
    )


def test_the_options_name_what_there_is() -> None:
    choices = {each.name: getattr(each.type, "choices", None) for each in tasks.params}

    assert choices["preset"] == tuple(TASK_PRESETS)
    assert choices["published"] == tuple(PUBLISHED)


def score(task: str, value: float, *, error: float | None, **more: object) -> TaskScore:
    fields: dict[str, object] = {
        "metric": "acc",
        "filter": "none",
        "higher_is_better": True,
        "shots": 5,
        "documents": 100,
        "of_documents": 100,
        "main": True,
        **more,
    }
    return TaskScore(task=task, value=value, error=error, **fields)  # type: ignore[arg-type]


def published(value: float, errors: float, *, card_label: str) -> PublishedScore:
    return PublishedScore(
        model="nvidia/Minitron-4B-Base",
        value=value,
        source="arXiv 2408.11796, table 1",
        card_label=card_label,
        standard_errors=errors,
        differs=abs(errors) > 1,
    )


def test_the_table_has_the_true_shots_beside_the_cards_label() -> None:
    scores = (
        score("mmlu", 0.561, error=0.01, published=published(0.586, -2.45, card_label="5-shot")),
        score("mmlu_anatomy", 0.5, error=0.04, group="mmlu"),
        score(
            "hellaswag",
            0.751,
            error=0.02,
            metric="acc_norm",
            shots=10,
            documents=50,
            of_documents=10042,
            published=published(0.75, 0.03, card_label="zero-shot"),
        ),
        score("hellaswag", 0.56, error=0.02, main=False, shots=10),
        score("minitron_xlsum", 0.2912, error=None, metric="rougeL", shots=3),
    )
    record = TaskRecord("0.4.13", "minitron", 50, (TaskModel("fp8", "c/fp8", scores),))

    assert as_text(record).splitlines() == [
        "fp8 (c/fp8)",
        "task       shots  card says    metric    documents  value     ±  published  off by",
        "MMLU           5     5-shot       acc          100  56.10  1.00       58.6  -2.5 ±",
        "HellaSwag     10  zero-shot  acc_norm  50 of 10042  75.10  2.00       75.0  +0.0 ±",
        "XLSum          3  zero-shot    rougeL          100  29.12",
        "published: nvidia/Minitron-4B-Base (arXiv 2408.11796, table 1); ± is one standard error",
        "beyond one standard error of the published figure: MMLU",
    ]
