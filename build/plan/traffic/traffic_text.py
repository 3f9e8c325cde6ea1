"""What a plan for a rate says on a terminal: a table, and what is behind its best rows."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from math import ceil
from types import MappingProxyType
from typing import Final

from minitron_trt.build.plan.row_table import TEXT_WIDTH, row_table
from minitron_trt.build.plan.traffic.efficiency import Spread, Uncertainty
from minitron_trt.build.plan.traffic.planned_traffic import TrafficRow
from minitron_trt.build.plan.traffic.queueing import queue_figures
from minitron_trt.build.plan.traffic.replicas import DEADLINE_QUANTILE, Demand, Traffic, quantile
from minitron_trt.tables import Column, table_lines

_BAR_WIDTH: Final = 24
# The curve has a row for about each of these loads of a replica, but none for a number of replicas
# that is within the step of another's.
_CURVE_LOADS: Final = (0.98, 0.9, 0.8, 0.7, 0.5, 0.3)
_CURVE_STEP: Final = 0.04
_MEANINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "replicas": "so many keep the deadlines and let 99 of 100 requests find a slot",
        "roofline": "fewer are impossible, whatever the software",
        "running": "requests at a replica at once, on average, of so many slots",
        "each": "requests a second of a replica, of those that it can bear",
        "TTFT": "time to first token: mean, and within what 99 of 100 are",
        "ITL": "time between tokens: mean, and within what 99 of 100 requests are",
        "within": "error of nine of ten predictions of NVIDIA's figures; >: or worse",
    }
)


def demand_text(demand: Demand) -> str:
    """Return a demand in a line."""
    deadlines = [
        f"{name} {_time(limit_s)}"
        for name, limit_s in (("TTFT", demand.ttft_s), ("ITL", demand.itl_s))
        if limit_s is not None
    ]
    within = f", 99 of 100 within {' and '.join(deadlines)}" if deadlines else ""
    return f"{demand.rate:,g} requests/s{within}"


def table_text(rows: Sequence[TrafficRow], width: int | None) -> list[str]:
    """Return the table of all rows that a demand can be served on, and what its columns mean."""
    served = [(each, each.traffic) for each in rows if each.traffic is not None]
    if not served:
        return []
    lines, left_out = row_table(
        [_cells(each, traffic) for each, traffic in served],
        drops={"roofline": 5, "each": 4, "running": 3, "GPUs": 2, "within": 1},
        meanings=_MEANINGS,
        width=width,
    )
    return ["", *lines, *(["", left_out] if left_out else [])]


def _cells(each: TrafficRow, traffic: Traffic) -> dict[str, str]:
    seen = traffic.simulated
    return {
        "GPU": each.row.target.gpu.name,
        "precision": each.row.precision,
        "tp": str(each.row.tp),
        "replicas": f"{traffic.replicas:,}",
        "GPUs": f"{each.gpus:,}",
        "roofline": f"{traffic.roofline.replicas(traffic.demand.rate):,}",
        "each": f"{traffic.rate_each:.3g} of {traffic.times.capacity:.3g}/s",
        "running": f"{traffic.queue.running:.0f} of {traffic.times.slots}",
        "TTFT": _times(traffic.queue.ttft_s, quantile(seen.ttfts_s, DEADLINE_QUANTILE)),
        "ITL": _times(traffic.queue.itl_s, quantile(seen.itls_s, DEADLINE_QUANTILE)),
        "within": _within_text(traffic.uncertainty),
    }


def details_text(name: str, traffic: Traffic) -> list[str]:
    """Return how a row's figures change with its replicas, what limits it, and how sure it is."""
    demand, times = traffic.demand, traffic.times
    roofline = traffic.roofline
    facts = {
        "first token": f"alone {_time(times.ttft_s)}; the roofline forbids less than "
        f"{_time(roofline.prompt.least_s)}, by its {roofline.prompt.bound_by}",
        "next tokens": f"alone {_time(times.itl_s)}; the roofline forbids less than "
        f"{_time(roofline.token.least_s)}, by its {roofline.token.bound_by}",
        "answer": f"{_time(traffic.queue.latency_s)} on average, "
        f"{_time(traffic.simulated.latency_s)} as simulated",
        "throughput": f"{traffic.tokens_per_s:,.0f} tokens/s; a replica bears "
        f"{times.capacity * demand.output_len:,.0f}, at full rates of its "
        f"{roofline.request.bound_by} {demand.output_len / roofline.request.least_s:,.0f}",
        "autoscaler": f"one more when more than {traffic.waiting_limit.requests} wait at each: "
        f"{traffic.waiting_limit.reason}",
        "leave-one-out": _spread_text(traffic.uncertainty.leave_one_out, traffic.uncertainty),
        "outside": _outside_text(traffic.uncertainty),
        "if slower": _slower_text(traffic),
    }
    widest = max(len(title) for title in facts)
    which = "its only replica" if traffic.replicas == 1 else f"one of {traffic.replicas:,} replicas"
    lines = [f"{name}, {which}:", "", *_curve(traffic), ""]
    for title, text in facts.items():
        lines += textwrap.wrap(
            text,
            TEXT_WIDTH,
            initial_indent=f"  {title:{widest}}  ",
            subsequent_indent=" " * (widest + 4),
        )
    return lines


def _curve(traffic: Traffic) -> list[str]:
    """Return a line for each of several numbers of replicas, in closed form."""
    demand, times = traffic.demand, traffic.times
    counts = {traffic.replicas}
    for load in _CURVE_LOADS:
        count = ceil(demand.rate / (load * times.capacity))
        if all(abs(count / other - 1) > _CURVE_STEP for other in counts):
            counts.add(count)
    rows = []
    for count in sorted(counts):
        rate = demand.rate / count
        queue = queue_figures(times, rate)
        filled = round(queue.running / times.slots * _BAR_WIDTH)
        rows.append(
            (
                f"{'>' if count == traffic.replicas else ' '} {count:,}",
                "█" * filled + "░" * (_BAR_WIDTH - filled),
                f"{queue.running:.0f}",
                _time(queue.ttft_s),
                _time(queue.itl_s),
                f"{queue.waits:.0%}" if queue.waits >= 0.005 else "-",
            )
        )
    titles = ("replicas", f"slots taken of {times.slots}", "", "TTFT", "ITL", "wait for a slot")
    columns = [
        Column(title, cells, left=index == 1)
        for index, (title, cells) in enumerate(zip(titles, zip(*rows, strict=True), strict=True))
    ]
    return [f"  {line}" for line in table_lines(columns)]


def _within_text(trust: Uncertainty) -> str:
    unknown = ">" if trust.outside is None else ""
    return f"{unknown}{trust.spread.ninth_decile:.0%}"


def _spread_text(spread: Spread, trust: Uncertainty) -> str:
    return (
        f"half of NVIDIA's {spread.figures} figures of {trust.precision}, each predicted from all "
        f"others, within {spread.median:.0%}, nine of ten within {spread.ninth_decile:.0%}"
    )


def _outside_text(trust: Uncertainty) -> str:
    others = {"model": trust.model_published, "GPU": trust.gpu_published}
    missing = " and ".join(kind for kind, published in others.items() if not published)
    if not missing:
        return "model and GPU are among those that NVIDIA measured"
    if trust.outside is None:
        return (
            f"of another {missing} than this there are too few figures of {trust.precision} to try "
            "what they say of it; measure"
        )
    return (
        f"NVIDIA did not measure this {missing}: predicted from those of another {missing}, half "
        f"are within {trust.outside.median:.0%}, nine of ten within "
        f"{trust.outside.ninth_decile:.0%}"
    )


def _slower_text(traffic: Traffic) -> str:
    share = traffic.uncertainty.spread.ninth_decile
    if traffic.slower_replicas is None:
        return f"by {share:.0%}, no number of replicas would keep the deadlines"
    many = "s" * (traffic.slower_replicas > 1)
    return f"by {share:.0%}, {traffic.slower_replicas:,} replica{many}"


def _times(average_s: float, most_s: float) -> str:
    average, most = _time(average_s), _time(most_s)
    same_unit = average.rpartition(" ")[2] == most.rpartition(" ")[2]
    return f"{average.rpartition(' ')[0] if same_unit else average}, {most}"


def _time(seconds: float) -> str:
    """Return a time with three digits: 8.11 ms, 340 ms, 2.35 s."""
    # What would round to 1,000 ms is 1 s.
    if seconds < 0.9995:
        return f"{_three(seconds * 1e3)} ms"
    return f"{_three(seconds)} s"


def _three(value: float) -> str:
    # From there on three digits are a whole number, which .3g may write as 1e+03.
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"
