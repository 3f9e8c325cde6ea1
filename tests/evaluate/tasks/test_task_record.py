"""The record of `eval tasks`: what is written is read again, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minitron_trt.build.engine_model import PRESETS
from minitron_trt.evaluate.tasks.presets import PUBLISHED, TASK_PRESETS, published_name
from minitron_trt.evaluate.tasks.task_record import (
    PublishedScore,
    TaskModel,
    TaskRecord,
    TaskScore,
)
from minitron_trt.records import read_record

PUBLISHED_SCORE = PublishedScore(
    model="nvidia/Minitron-4B-Base",
    value=0.75,
    source="arXiv 2408.11796, table 1",
    card_label="zero-shot",
    standard_errors=-1.5,
    differs=True,
)
SCORE = TaskScore(
    task="hellaswag",
    metric="acc_norm",
    filter="none",
    value=0.743,
    error=0.0043,
    higher_is_better=True,
    shots=10,
    documents=10042,
    of_documents=10042,
    main=True,
    published=PUBLISHED_SCORE,
)
RECORD = TaskRecord(
    lm_eval="0.4.13",
    preset="minitron",
    limit=None,
    models=(TaskModel("fp8", "checkpoints/fp8", (SCORE,)),),
)


def test_what_is_printed_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps(RECORD.as_json()))

    assert read_record(path, TaskRecord) == RECORD
    assert RECORD.as_json()["kind"] == "eval tasks"
    assert RECORD.models[0].main_scores == [SCORE]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "eval perplexity"}, "has kind 'eval perplexity', version 1; expected 'eval task"),
        ({"version": 2}, "version 2; expected 'eval tasks', version 1"),
        ({"models": "none"}, r"Expected `array`, got `str` - at `\$\.models`"),
    ],
    ids=["another command", "a newer version", "no models"],
)
def test_what_is_something_else_is_refused(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps(RECORD.as_json() | change))

    with pytest.raises(ValueError, match=message):
        read_record(path, TaskRecord)


def test_published_models_are_known_by_their_sizes_and_have_figures_of_known_tasks() -> None:
    names = {task.name for task in TASK_PRESETS["minitron"]}

    assert {published_name(spec) for spec in PRESETS.values()} == set(PUBLISHED)
    for figures in PUBLISHED.values():
        assert set(figures) <= names


def test_the_shots_are_those_of_table_1() -> None:
    shots = {task.name: task.shots for task in TASK_PRESETS["minitron"]}

    assert shots == {
        "MMLU": 5,
        "HellaSwag": 10,
        "Winogrande": 5,
        "ARC-C": 25,
        "GSM8K": 5,
        "XLSum": 3,
        "MBPP": 0,
        "HumanEval": 0,
    }
    assert not any(task.runs_code for task in TASK_PRESETS["minitron-no-code"])


def test_rounding_of_a_published_figure_is_no_difference() -> None:
    figure = PUBLISHED["minitron-4b"]["HellaSwag"]

    assert figure.distance(0.7504) == 0
    assert figure.distance(0.76) == pytest.approx(0.0095)
    assert figure.distance(0.74) == pytest.approx(-0.0095)
