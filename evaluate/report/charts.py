"""The pictures of a report, each from the same records as the table beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from minitron_trt.build.plan.plan_chart import MemoryBar
from minitron_trt.build.plan.plan_chart import chart as memory_chart
from minitron_trt.evaluate.chart import chart
from minitron_trt.evaluate.report.result_records import (
    BenchResult,
    PerplexityResult,
    PlanResult,
    VerifyResult,
)
from minitron_trt.evaluate.tasks.task_record import TaskModel, TaskRecord, TaskScore

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLUE, _ORANGE, _GREEN, _GREY = "#4c72b0", "#dd8452", "#55a868", "#999999"
_WIDTH_INCHES: Final = 8.5
_ROW_INCHES: Final = 0.32


def _figure(height_inches: float) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH_INCHES, height_inches), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def plan_chart(plan: PlanResult) -> Figure | None:
    """Return a bar for each GPU and precision that fits: what its memory is for."""
    bars = [
        MemoryBar(
            gpu=row.gpu,
            precision=row.precision,
            tp=row.tp,
            weights_bytes=row.memory.weights_bytes,
            activation_bytes=row.memory.activation_bytes,
            reserve_bytes=row.memory.reserve_bytes,
            kv_pool_bytes=row.memory.kv_pool_bytes,
            gpu_bytes=row.memory.gpu_bytes,
            sequences=row.sequences,
        )
        for row in plan.rows
        if row.memory is not None
    ]
    return memory_chart(bars) if bars else None


def verify_chart(found: VerifyResult) -> Figure | None:
    """Return the error of each layer below the bound of the precision."""
    if len(found.layers) < 2:
        return None
    figure, axes = _figure(2.8)
    layers = [error.layer for error in found.layers]
    errors = [error.relative for error in found.layers]
    axes.plot(layers, errors, marker="o", markersize=4, color=_BLUE, label="error of the layer")
    axes.axhline(found.bound, color=_ORANGE, linestyle="--", linewidth=1, label="bound")
    axes.set(xlabel="layer", ylabel="error, share of the source's size", ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    return figure


def perplexity_chart(found: PerplexityResult) -> Figure | None:
    """Return size against quality, of the models that have a size."""
    return chart(found.models) if any(model.size_bytes for model in found.models) else None


def tasks_chart(found: TaskRecord) -> Figure | None:
    """Return a bar for each task and model with its standard error, and what is published."""
    names = list(dict.fromkeys(score.task for model in found.models for score in shown(model)))
    if not names:
        return None
    count = len(found.models)
    figure, axes = _figure(1.2 + _ROW_INCHES * len(names) * max(1.0, 0.6 * count))
    colours = (_BLUE, _ORANGE, _GREEN, _GREY)
    for at, model in enumerate(found.models):
        scores = shown(model)
        places = [
            names.index(score.task) + (at - (count - 1) / 2) * 0.8 / count for score in scores
        ]
        axes.barh(
            places,
            [100 * score.value for score in scores],
            xerr=[100 * (score.error or 0) for score in scores],
            height=0.8 / count,
            color=colours[at % len(colours)],
            ecolor=_GREY,
            label=model.model,
        )
        known = [
            (place, 100 * score.published.value)
            for place, score in zip(places, scores, strict=True)
            if score.published
        ]
        if known:
            ys, xs = zip(*known, strict=True)
            axes.plot(xs, ys, "D", color="#000000", markersize=4, label="published")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("%")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def shown(model: TaskModel) -> list[TaskScore]:
    """Return a model's scores that a chart has: of the tasks that were asked for, the shares."""
    return [score for score in model.main_scores if score.is_share]


def bench_chart(loads: Sequence[BenchResult]) -> Figure | None:
    """Return latencies and throughput by load."""
    from matplotlib.figure import Figure

    if len(loads) < 2:
        return None
    figure = Figure(figsize=(_WIDTH_INCHES, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    # Side by side, by name: concurrencies, rates and schedules have no scale in common.
    places, names = range(len(loads)), [load.load for load in loads]
    for tag, colour in (("time_to_first_token", _BLUE), ("inter_token_latency", _ORANGE)):
        for name, line in (("p50", "-"), ("p99", "--")):
            values = [load.figures.get(tag, {}).get(name) for load in loads]
            if None not in values:
                label = f"{tag.replace('_', ' ')}, {name}"
                left.plot(places, values, line, marker="o", markersize=4, color=colour, label=label)
    left.set(ylabel="ms", ylim=(0, None))
    left.legend(frameon=False, fontsize=8)
    tokens = [load.figures.get("output_token_throughput", {}).get("avg", 0) for load in loads]
    right.bar(places, tokens, color=_GREEN, width=0.6)
    right.set(ylabel="output tokens/s of all")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        axes.set_xticks(places, names, rotation=20, ha="right")
    return figure
