"""The scores of models as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from minitron_trt.evaluate.tasks.presets import TASK_PRESETS
from minitron_trt.evaluate.tasks.task_record import TaskModel, TaskRecord, TaskScore
from minitron_trt.tables import Column, fitting, output_width, table_lines


def as_text(record: TaskRecord) -> str:
    """Return a table for each model: its scores, and what is published of a model of its sizes."""
    return "\n\n".join("\n".join(_model_lines(model, record)) for model in record.models)


def _model_lines(model: TaskModel, record: TaskRecord) -> Iterator[str]:
    scores = model.main_scores
    yield f"{model.model} ({model.source})" if model.model != model.source else model.model
    columns = [
        Column(title, cells, left=not at)
        for at, (title, cells) in enumerate(_columns(scores, record))
    ]
    kept, _ = fitting(columns, output_width())
    yield from table_lines(kept)
    published = [score.published for score in scores if score.published is not None]
    if not published:
        return
    sources = "; ".join(dict.fromkeys(figure.source for figure in published))
    yield f"published: {published[0].model} ({sources}); ± is one standard error"
    beyond = [score for score in scores if score.published and score.published.differs]
    if beyond:
        names = ", ".join(_name(score, record) for score in beyond)
        yield f"beyond one standard error of the published figure: {names}"
    else:
        yield "no figure is beyond one standard error of the published one"


def _columns(scores: Sequence[TaskScore], record: TaskRecord) -> Iterator[tuple[str, list[str]]]:
    yield "task", [_name(score, record) for score in scores]
    yield "shots", ["" if score.shots is None else str(score.shots) for score in scores]
    if any(score.published for score in scores) or record.preset:
        yield "card says", [_card_label(score, record) for score in scores]
    yield "metric", [score.metric for score in scores]
    yield "documents", [_documents(score) for score in scores]
    yield "value", [score_text(score, score.value) for score in scores]
    yield "±", ["" if score.error is None else score_text(score, score.error) for score in scores]
    if any(score.published for score in scores):
        figures = [score.published for score in scores]
        yield (
            "published",
            ["" if figure is None else f"{100 * figure.value:.1f}" for figure in figures],
        )
        yield (
            "off by",
            [
                ""
                if figure is None or figure.standard_errors is None
                else f"{figure.standard_errors:+z.1f} ±"
                for figure in figures
            ],
        )


def _name(score: TaskScore, record: TaskRecord) -> str:
    names = {each.task: each.name for each in TASK_PRESETS.get(record.preset or "", ())}
    return names.get(score.task, score.task)


def _card_label(score: TaskScore, record: TaskRecord) -> str:
    labels = {each.task: each.card_label for each in TASK_PRESETS.get(record.preset or "", ())}
    return labels.get(score.task, "")


def _documents(score: TaskScore) -> str:
    if score.documents is None:
        return ""
    is_part = score.of_documents is not None and score.documents != score.of_documents
    return f"{score.documents} of {score.of_documents}" if is_part else str(score.documents)


def score_text(score: TaskScore, value: float) -> str:
    """Return a score's value or error, of a share in percent."""
    return f"{100 * value:.2f}" if score.is_share else f"{value:.4f}"
