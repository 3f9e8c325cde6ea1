"""The rows of a plan under a demand: replicas of each, or why no number of them would do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minitron_trt.build.plan.sizing import Plan, PlanRow
from minitron_trt.build.plan.traffic.efficiency import efficiency
from minitron_trt.build.plan.traffic.replicas import Demand, Traffic, plan_traffic
from minitron_trt.errors import UnsupportedError


@dataclass(frozen=True, slots=True)
class TrafficRow:
    """A row on which the model fits; `problem` says why there is no traffic."""

    row: PlanRow
    traffic: Traffic | None = None
    problem: str = ""

    @property
    def gpus(self) -> int:
        """Return the GPUs of all replicas."""
        return 0 if self.traffic is None else self.traffic.replicas * self.row.tp


def planned_traffic(plan: Plan, demand: Demand) -> tuple[TrafficRow, ...]:
    """Return what each row of a plan takes for a demand."""
    return tuple(_planned(row, demand) for row in plan.rows if row.recipe is not None)


def _planned(row: PlanRow, demand: Demand) -> TrafficRow:
    assert row.recipe is not None
    limits = row.recipe.limits
    try:
        traffic = plan_traffic(
            row.recipe.model,
            row.target.gpu,
            demand,
            slots=min(limits.max_batch_size, row.sequences),
            step_tokens=limits.max_num_tokens,
        )
    except UnsupportedError as error:
        return TrafficRow(row, problem=str(error))
    return TrafficRow(row, traffic)


def traffic_record(plan: Plan, rows: Sequence[TrafficRow]) -> dict[str, Any]:
    """Return what a demand adds to the record that --json prints, rows in the plan's order."""
    by_row = {id(each.row): each for each in rows}
    records = []
    for row in plan.rows:
        record, each = row.to_json(), by_row.get(id(row))
        if each is not None and each.traffic is not None:
            record["traffic"] = each.traffic.to_json()
        elif each is not None:
            record["problem"] = each.problem
        records.append(record)
    return {"efficiency": efficiency().to_json(), "rows": records}
