"""What a plan says on a terminal: a table or what traffic takes, and what it comes to."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from minitron_trt.build.plan.recommendation import Recommendation
from minitron_trt.build.plan.row_table import TEXT_WIDTH, row_table
from minitron_trt.build.plan.sizing import Plan, PlanRow, parameters
from minitron_trt.build.recipe.engine_memory import KV_FRACTION, NCCL_BYTES, RESERVE_BYTES
from minitron_trt.console import size_text
from minitron_trt.gpus import Sure
from minitron_trt.tables import folded

# What only a rate needs is imported where it is used: without one a plan shall come at once.
if TYPE_CHECKING:
    from minitron_trt.build.plan.traffic.planned_traffic import PlannedTraffic

_GIB: Final = 1 << 30
# What stands above a column, in words.
_MEANINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "weights": "memory of each GPU that the weights take",
        "KV cache": "memory of each GPU that is left for keys and values",
        "tokens": "so many fit in the KV cache",
        "seqs": "so many sequences of these lengths fit at once",
        "prefill>=": "one prompt takes at least so long",
        "decode<=": "tokens a second of one sequence, at most",
        "batch<=": "tokens a second of all that fit together, at most",
        "limits": "recommended max_batch_size x max_seq_len of the engine",
    }
)


def describe(
    result: Plan,
    recommended: list[Recommendation],
    *,
    traffic: PlannedTraffic | None = None,
    explain: bool = False,
    width: int | None = None,
) -> str:
    """Return a plan as a table and its assumptions, and what it comes to."""
    spec = result.model.spec
    kv_bytes = 2 * spec.layers * spec.kv_size * result.model.kv_cache_bytes
    fits = [row for row in result.rows if row.recipe is not None]
    lines = [
        f"{result.model.name}: {parameters_text(parameters(spec))} parameters, "
        f"{kv_bytes:,} bytes of KV cache a token",
        f"for sequences of {result.input_len:,} + {result.output_len:,} tokens",
    ]
    if traffic is not None:
        lines += _traffic_lines(traffic, width)
    elif fits:
        lines += ["", *_table(fits, width)]
    problems = [(row, traffic.problem(row) if traffic else row.problem) for row in result.rows]
    refused = [f"{_name(row)}: {problem}" for row, problem in problems if problem]
    lines += ["", *refused] if refused else []
    gpus = dict.fromkeys(row.target.gpu for row in result.rows)
    unsure = [gpu.name for gpu in gpus if gpu.sure is Sure.UNVERIFIED]
    if unsure:
        lines += ["", f"Not compared with a data sheet: bandwidth and rates of {', '.join(unsure)}"]
    if explain:
        for row in fits:
            assert row.recipe is not None
            lines += ["", f"{_name(row)}:", folded(row.recipe.explain(), width)]
    for each in recommended:
        lines += ["", *_recommendation_lines(each)]
    return "\n".join(lines)


def _traffic_lines(traffic: PlannedTraffic, width: int | None) -> list[str]:
    from minitron_trt.build.plan.traffic.traffic_text import demand_text, table_text

    return [f"at {demand_text(traffic.demand)}", *table_text(traffic.rows, width)]


def _recommendation_lines(each: Recommendation) -> list[str]:
    gpu, count = each.row.target.gpu.name, each.row.tp
    lines = []
    if each.traffic is not None:
        from minitron_trt.build.plan.traffic.traffic_text import details_text

        lines = [*details_text(_name(each.row), each.traffic), ""]
    return [
        *lines,
        f"Recommended for {gpu}: {each.row.precision} on {count} GPU{'s' * (count > 1)}",
        f"  # {each.reason}",
        *(f"  {command}" for command in each.commands),
    ]


def parameters_text(count: int) -> str:
    """Return a number of parameters as models are called by it, such as 8.27 B or 1.2 M."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def _name(row: PlanRow) -> str:
    return f"{row.target.gpu.name} {row.precision} tp {row.tp}"


def _table(rows: list[PlanRow], width: int | None) -> list[str]:
    """Return the table, and below it what its columns mean and what was assumed."""
    lines, left_out = row_table(
        [_cells(row) for row in rows],
        drops={"limits": 4, "tokens": 3, "prefill>=": 2, "KV cache": 1},
        meanings=_MEANINGS,
        width=width,
    )
    reserve, several = (size / _GIB for size in (RESERVE_BYTES, RESERVE_BYTES + NCCL_BYTES))
    note = (
        "Bounds that cannot be beaten, not predictions. Assumed: activations of one step, "
        f"{reserve:g} GiB for the runtime ({several:g} GiB on several GPUs), and {KV_FRACTION} of "
        "the rest for the KV cache."
    )
    return [*lines, "", *textwrap.wrap(f"{note} {left_out}", TEXT_WIDTH)]


def _cells(row: PlanRow) -> dict[str, str]:
    assert row.recipe is not None
    assert row.bounds is not None
    held, limits = row.recipe.forecast, row.recipe.limits
    return {
        "GPU": row.target.gpu.name,
        "precision": row.precision,
        "tp": str(row.tp),
        "weights": size_text(held.weights_bytes),
        "KV cache": size_text(held.kv_pool_bytes),
        "tokens": f"{held.kv_tokens:,}",
        "seqs": f"{row.sequences:,}",
        "prefill>=": f"{row.bounds.prefill_s * 1e3:,.1f} ms",
        "decode<=": f"{row.bounds.decode_tokens_per_s:,.0f}/s",
        "batch<=": f"{row.bounds.batch_tokens_per_s:,.0f}/s",
        "limits": f"{limits.max_batch_size} x {limits.max_seq_len}",
    }
