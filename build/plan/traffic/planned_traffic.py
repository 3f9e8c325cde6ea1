"""The rows of a plan under a demand: replicas of each, or why no number of them would do."""

from __future__ import annotations

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


@dataclass(frozen=True, slots=True)
class PlannedTraffic:
    """A demand, and each row of a plan on which the model fits."""

    plan: Plan
    demand: Demand
    rows: tuple[TrafficRow, ...]

    def of(self, row: PlanRow) -> Traffic | None:
        """Return what a row of the plan bears; None where it cannot serve the demand."""
        return next((each.traffic for each in self.rows if each.row is row), None)

    def problem(self, row: PlanRow) -> str:
        """Return why a row of the plan cannot serve the demand, if so."""
        return row.problem or next((each.problem for each in self.rows if each.row is row), "")

    def to_json(self) -> dict[str, Any]:
        """Return the plan's record with what --rate adds to it."""
        rows = []
        for row in self.plan.rows:
            traffic = self.of(row)
            more = {"traffic": traffic.to_json()} if traffic else {"problem": self.problem(row)}
            rows.append(row.to_json() | more)
        return {
            **self.plan.to_json(),
            "demand": self.demand.to_json(),
            "efficiency": efficiency().to_json(),
            "rows": rows,
        }


def planned_traffic(plan: Plan, demand: Demand) -> PlannedTraffic:
    """Return what each row of a plan takes for a demand."""
    rows = tuple(_planned(row, demand) for row in plan.rows if row.recipe is not None)
    return PlannedTraffic(plan, demand, rows)


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
