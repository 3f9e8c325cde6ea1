"""What lm-eval found of a model, returned by it or read from its own file, as scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from minitron_trt.build.engine_model import HUB_IDS
from minitron_trt.evaluate.tasks.presets import PUBLISHED, PresetTask
from minitron_trt.evaluate.tasks.task_record import PublishedScore, TaskScore


class DocumentCount(msgspec.Struct, frozen=True):
    """How many of a task's questions were asked, and of how many."""

    effective: int | None
    original: int | None = None


class HarnessResults(msgspec.Struct, frozen=True):
    """The part of lm-eval's results that becomes scores, by the names of its tasks.

    `acc,none` is the figure of the metric `acc` after the filter `none`, `acc_stderr,none` its
    standard error.
    """

    results: dict[str, dict[str, Any]]
    shots: dict[str, int | None] = msgspec.field(name="n-shot", default_factory=dict)
    documents: dict[str, DocumentCount] = msgspec.field(name="n-samples", default_factory=dict)
    higher_is_better: dict[str, dict[str, bool | None]] = {}
    group_subtasks: dict[str, list[str]] = {}
    model_name: str | None = None  # empty where lm-eval sees none in the model's arguments
    lm_eval_version: str = ""


def task_scores(
    found: HarnessResults,
    benchmarks: Mapping[str, PresetTask] | None = None,
    *,
    published: str | None = None,
) -> Iterator[TaskScore]:
    """Yield every metric of every task, one of each marked as the main one.

    Of a benchmark that is the one that was published, with the figure of the `published` model.
    """
    figures = {task: _figures(values) for task, values in found.results.items()}
    # A group that has no figure of its own stands for none of its tasks.
    groups = {
        child: group
        for group, children in found.group_subtasks.items()
        for child in children
        if figures.get(group)
    }
    for task, values in figures.items():
        benchmark = (benchmarks or {}).get(task)
        main = next(iter(values), None) if benchmark is None else benchmark.figure
        # Of a group lm-eval counts only the questions of all its tasks that were asked.
        total = found.results[task].get("sample_len")
        count = found.documents.get(task) or DocumentCount(effective=total)
        for name, value in values.items():
            metric, _, filtered = name.partition(",")
            error = found.results[task].get(f"{metric}_stderr,{filtered}")
            error = error if isinstance(error, float) else None
            beside = None
            if benchmark is not None and published is not None and name == main:
                beside = _published(benchmark, published, value=value, error=error)
            yield TaskScore(
                task=task,
                metric=metric,
                filter=filtered,
                value=value,
                error=error,
                higher_is_better=found.higher_is_better.get(task, {}).get(metric),
                shots=found.shots.get(task),
                documents=count.effective,
                of_documents=count.original,
                main=name == main,
                group=groups.get(task),
                published=beside,
            )


def _figures(values: Mapping[str, Any]) -> dict[str, float]:
    """Return a task's figures by lm-eval's names of them, without their errors."""
    return {
        name: float(value)
        for name, value in values.items()
        if "," in name and not name.partition(",")[0].endswith("_stderr")
        if isinstance(value, (int, float))
    }


def _published(
    benchmark: PresetTask, model: str, *, value: float, error: float | None
) -> PublishedScore | None:
    """Return a model's published figure and how far a result is from it; None without one."""
    figure = PUBLISHED[model].get(benchmark.name)
    if figure is None:
        return None
    distance = figure.distance(value)
    errors = distance / error if error else None
    return PublishedScore(
        model=HUB_IDS[model],
        value=figure.value,
        source=figure.source,
        card_label=benchmark.card_label,
        standard_errors=errors,
        differs=None if errors is None else abs(errors) > 1,
    )
