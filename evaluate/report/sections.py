"""The parts of a report: what was found in a sentence, a table, and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Final

from minitron_trt.console import size_text
from minitron_trt.evaluate.report import charts
from minitron_trt.evaluate.report.result_records import (
    BenchResult,
    PerplexityResult,
    PlanResult,
    ReportedRow,
    Result,
    ScoredModel,
    VerifyResult,
)
from minitron_trt.evaluate.table import rows_of
from minitron_trt.evaluate.tasks.results_table import score_text
from minitron_trt.evaluate.tasks.task_record import TaskRecord, TaskScore
from minitron_trt.html_page import folded, small, table
from minitron_trt.tables import number_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TIMES: Final = ("time_to_first_token", "inter_token_latency", "request_latency")
_RATES: Final = ("request_throughput", "output_token_throughput")


@dataclass(frozen=True, slots=True)
class Section:
    """What one result says; `is_good` is None where nothing is judged."""

    title: str
    summary: str
    parts: Sequence[str] = ()  # HTML
    figure: Figure | None = None
    is_good: bool | None = None


def sections(results: Sequence[Result], *, draw: bool) -> list[Section]:
    """Return the sections of results, in the order of the work: plan first, load tests last."""
    found = [
        *(_plan(result, draw) for result in results if isinstance(result, PlanResult)),
        *(_verify(result, draw) for result in results if isinstance(result, VerifyResult)),
        *(_perplexity(result, draw) for result in results if isinstance(result, PerplexityResult)),
        *(_tasks(result, draw) for result in results if isinstance(result, TaskRecord)),
    ]
    loads = [result for result in results if isinstance(result, BenchResult)]
    return [*found, *([_bench(loads, draw)] if loads else [])]


def _plan(plan: PlanResult, draw: bool) -> Section:
    fit = [row for row in plan.rows if row.fits]
    parts = [
        f"<p>{plan.parameters / 1e9:.3g} billion parameters ({escape(plan.architecture)}), for "
        f"sequences of {plan.input_len:,} + {plan.output_len:,} tokens.</p>",
        table(
            ["GPU", "precision", "tp", "weights", "KV cache", "sequences", "prefill ≥", "decode ≤"],
            [_plan_cells(row) for row in fit],
            texts=2,
        ),
        small("Bounds by bandwidth and arithmetic that no engine beats, not predictions."),
    ]
    refused = [
        [f"{row.gpu} {row.precision} tp {row.tp}", row.problem or ""]
        for row in plan.rows
        if not row.fits
    ]
    if refused:
        parts.append(folded(f"What does not fit ({len(refused)})", table(None, refused, texts=2)))
    for each in plan.recommended:
        count = f"{each.tp} GPU{'s' * (each.tp > 1)}"
        parts.append(f"<h3>{escape(each.gpu)}: {escape(each.precision)} on {count}</h3>")
        lines = "\n".join((f"# {each.reason}", *each.commands))
        parts.append(f"<pre>{escape(lines)}</pre>")
    advice = "; ".join(f"{each.precision} on {each.tp} × {each.gpu}" for each in plan.recommended)
    return Section(
        f"Plan of {plan.model}",
        f"recommended: {advice}" if advice else "nothing fits",
        parts,
        charts.plan_chart(plan) if draw else None,
        None if advice else False,
    )


def _plan_cells(row: ReportedRow) -> list[str]:
    memory, bounds = row.memory, row.bounds
    return [
        row.gpu,
        row.precision,
        str(row.tp),
        size_text(memory.weights_bytes) if memory else "",
        size_text(memory.kv_pool_bytes) if memory else "",
        f"{row.sequences or 0:,}",
        f"{bounds.prefill_ms_at_least:,.1f} ms" if bounds else "",
        f"{bounds.decode_tokens_per_s_at_most:,.0f}/s" if bounds else "",
    ]


def _verify(found: VerifyResult, draw: bool) -> Section:
    worst = max(found.layers, key=lambda error: error.relative, default=None)
    cache = f" with a KV cache in {found.kv_cache}" if found.kv_cache else ""
    logits = found.logits
    summary = found.fault or (
        f"computes what its source does: layers within {worst.relative if worst else 0:.2g} "
        f"(bound {found.bound:g}), KL {logits.kl:.2g}, same best token {logits.same_top:.1%}, "
        f"on {found.tokens} tokens"
    )
    rows = [
        [
            str(error.layer),
            *(f"{x:.2g}" for x in (error.relative, error.largest, error.mean)),
            f"{error.cosine:.6f}",
        ]
        for error in found.layers
    ]
    rows.append(
        ["logits", "", f"{logits.largest:.2g}", f"{logits.mean:.2g}", f"{logits.cosine:.6f}"]
    )
    return Section(
        f"Verification of {found.precision}{cache}",
        summary,
        [table(["layer", "error", "max", "mean", "cosine"], rows)],
        charts.verify_chart(found) if draw else None,
        found.fault is None,
    )


def _perplexity(found: PerplexityResult, draw: bool) -> Section:
    baseline, *others = found.models
    alone = f"{baseline.name}: {baseline.perplexity.value:.4f} ± {baseline.perplexity.error:.4f}"
    header, *rows = rows_of(found.models)
    return Section(
        "Perplexity",
        "; ".join(_loss(model, baseline) for model in others) or alone,
        [
            table(header, rows),
            small(
                f"Of {baseline.scored_tokens:,} tokens, as llama-perplexity defines it: accuracy "
                "is the first model's perplexity as a share of a model's own, KL the mean "
                "divergence from the first model."
            ),
        ],
        charts.perplexity_chart(found) if draw else None,
    )


def _loss(model: ScoredModel, baseline: ScoredModel) -> str:
    """Return a sentence on what a model has lost, and for which size."""
    kept = baseline.perplexity.value / model.perplexity.value
    sentence = f"{model.name} keeps {100 * kept:.2f} % of {baseline.name}'s accuracy"
    if not model.size_bytes or not baseline.size_bytes:
        return sentence
    return f"{sentence} at {100 * model.size_bytes / baseline.size_bytes:.1f} % of its size"


def _tasks(found: TaskRecord, draw: bool) -> Section:
    rows, differing = [], []
    for model in found.models:
        for score in model.tasks:
            name = f"{score.group}: {score.task}" if score.group else score.task
            rows.append([model.model, name, score.metric, *_task_cells(score)])
            if score.published and score.published.differs:
                differing.append(f"{score.task} of {model.model}")
    # A sentence has room for one model; the table has them all.
    main = [
        f"{score.task} {100 * score.value:.1f}"
        for model in found.models[:1]
        for score in charts.shown(model)
    ]
    summary = f"{found.models[0].model}: {', '.join(main)}" if main else "no scores"
    if differing:
        summary += f"; beyond the error of the published figure: {', '.join(differing)}"
    return Section(
        "Tasks",
        summary,
        [
            table(["model", "task", "metric", "shots", "value", "±", "published"], rows, texts=3),
            small("By lm-evaluation-harness; shares are in %, ± is one standard error."),
        ],
        charts.tasks_chart(found) if draw else None,
    )


def _task_cells(score: TaskScore) -> list[str]:
    return [
        "" if score.shots is None else str(score.shots),
        score_text(score, score.value),
        "" if score.error is None else score_text(score, score.error),
        "" if score.published is None else f"{100 * score.published.value:.1f}",
    ]


def _bench(loads: Sequence[BenchResult], draw: bool) -> Section:
    best = max(loads, key=lambda load: _figure_of(load, "output_token_throughput", "avg") or 0)
    rows = []
    for load in loads:
        cells = [load.load if load.is_complete else f"{load.load} (interrupted)"]
        cells += [_cell(load, tag, "avg") for tag in _RATES]
        cells += [_cell(load, tag, name) for tag in _TIMES for name in ("p50", "p99")]
        rows.append([*cells, _cell(load, "error_request_count", "avg")])
    head = [
        "load",
        "requests/s",
        "tokens/s",
        "TTFT p50",
        "p99",
        "ITL p50",
        "p99",
        "latency p50",
        "p99",
        "errors",
    ]
    model = f" of {loads[0].model}" if loads[0].model else ""
    return Section(
        f"Load test{model}",
        f"{best.load}: {_cell(best, 'output_token_throughput', 'avg')} tokens/s, time to first "
        f"token {_cell(best, 'time_to_first_token', 'p99')} ms and inter-token latency "
        f"{_cell(best, 'inter_token_latency', 'p99')} ms at p99",
        [table(head, rows), small("Times in ms, defined as in NVIDIA's aiperf.")],
        charts.bench_chart(loads) if draw else None,
    )


def _figure_of(load: BenchResult, tag: str, name: str) -> float | None:
    return load.figures.get(tag, {}).get(name)


def _cell(load: BenchResult, tag: str, name: str) -> str:
    value = _figure_of(load, tag, name)
    return "" if value is None else number_text(value)
