"""What a plan for a rate of requests says of replicas and of the autoscaler."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from minitron_trt.errors import BadInputError, UsageError
from minitron_trt.records import Size, read_record

_Rate = Annotated[float, Meta(gt=0)]


@dataclass(frozen=True, slots=True)
class PlannedScale:
    """Replicas for a rate, and how many requests may wait at each before there should be one more.

    They hold for one GPU, number of ranks, and `concurrency` sequences that a replica runs at once.
    """

    rate: _Rate
    tokens_per_s: _Rate
    gpu: str
    tp: Size
    concurrency: Size
    replicas: Size
    most_replicas: Size
    waiting: Size
    waiting_reason: str

    @property
    def what(self) -> str:
        """Return it as reasons beside numbers name it."""
        return f"the plan for {self.rate:g} requests/s"


@dataclass(frozen=True, slots=True)
class _PlannedReplica:
    concurrency_at_most: Size


@dataclass(frozen=True, slots=True)
class _Autoscaler:
    waiting: Size
    reason: str


@dataclass(frozen=True, slots=True)
class _Traffic:
    replicas: Size
    tokens_per_s: _Rate
    replica: _PlannedReplica
    autoscaler: _Autoscaler
    replicas_if_slower: Size | None = None


@dataclass(frozen=True, slots=True)
class _PlanRow:
    gpu: str
    tp: Size
    traffic: _Traffic | None = None


@dataclass(frozen=True, slots=True)
class _Demand:
    rate: _Rate


@dataclass(frozen=True, slots=True)
class _Plan:
    rows: list[_PlanRow]
    demand: _Demand | None = None


def read_planned_scale(path: Path) -> PlannedScale:
    """Read what `plan --rate … --json` printed; it must have one row that serves the rate."""
    try:
        plan = read_record(path, _Plan)
    except ValueError as error:
        raise BadInputError(
            f"{path} is no plan ({error}); expected what minitron-trt plan --rate … --json prints"
        ) from error
    served = [(row, row.traffic) for row in plan.rows if row.traffic is not None]
    if plan.demand is None or len(served) != 1:
        found = "no --rate" if plan.demand is None else f"{len(served)} rows that serve it"
        raise UsageError(
            f"{path} has {found}; expected one: plan with a --rate, one --gpu and one --precision"
        )
    ((row, traffic),) = served
    return PlannedScale(
        rate=plan.demand.rate,
        tokens_per_s=traffic.tokens_per_s,
        gpu=row.gpu,
        tp=row.tp,
        concurrency=traffic.replica.concurrency_at_most,
        replicas=traffic.replicas,
        most_replicas=max(traffic.replicas, traffic.replicas_if_slower or 0),
        waiting=traffic.autoscaler.waiting,
        waiting_reason=traffic.autoscaler.reason,
    )
