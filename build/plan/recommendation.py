"""What a plan comes to: for each GPU one row of it, why, and the commands that build it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from minitron_trt.build.plan.sizing import Plan, PlanRow
from minitron_trt.build.recipe.request import BuildRequest

if TYPE_CHECKING:
    from minitron_trt.build.plan.traffic.planned_traffic import PlannedTraffic
    from minitron_trt.build.plan.traffic.replicas import Traffic

# FP8 first where the GPU multiplies in it: TensorRT-LLM's documentation suggests that for batches
# of 16 and more (docs/source/blogs/quantization-in-TRT-LLM.md, "Best practices"). The rest is an
# order of our own: what loses nothing, then what makes the model fit. NVFP4 comes late, as it loses
# most in docs/accuracy.md.
ORDER: Final = {
    "fp8": "half the weights to read, multiplied in FP8; NVIDIA suggests it first",
    "bf16": "the model's own numbers",
    "fp16": "the model's own numbers, in 16 bits of another kind",
    "w8a16": "weights of 8 bits fit where bf16 does not, at little loss",
    "w4a16-awq": "weights of 4 bits, calibrated, fit where 8 bits do not",
    "fp8-rowwise": "FP8 with a scale per row",
    "w4a8-awq": "weights of 4 bits, multiplied in FP8",
    "nvfp4": "weights of 4 bits, multiplied in FP4",
    "w4a16": "weights of 4 bits, not calibrated",
}
_ALREADY: Final = "as the checkpoint is stored"


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One row of a plan, the reason, and what to type for an engine of it."""

    row: PlanRow
    reason: str
    commands: tuple[str, ...]
    traffic: Traffic | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the record that --json prints."""
        return {
            "gpu": self.row.target.gpu.name,
            "precision": self.row.precision,
            "tp": self.row.tp,
            "reason": self.reason,
            "commands": list(self.commands),
        }


def recommend(
    plan: Plan,
    source: str,
    request: BuildRequest,
    *,
    traffic: PlannedTraffic | None = None,
) -> list[Recommendation]:
    """Return the best row of each GPU on which anything fits: few GPUs, then `ORDER`.

    `source` is what to convert, or the checkpoint to build from; `request` is what the engine was
    planned with. With `traffic` only rows count that can serve it.
    """
    order = list(ORDER)
    best: dict[str, PlanRow] = {}
    for row in plan.rows:
        if row.recipe is None or (traffic and not traffic.of(row)):
            continue
        key = (row.tp, order.index(row.precision))
        other = best.get(row.target.name)
        if other is None or key < (other.tp, order.index(other.precision)):
            best[row.target.name] = row
    return [
        _recommendation(plan, row, source, request, traffic.of(row) if traffic else None)
        for row in best.values()
    ]


def _recommendation(
    plan: Plan,
    row: PlanRow,
    source: str,
    request: BuildRequest,
    traffic: Traffic | None,
) -> Recommendation:
    return Recommendation(
        row=row,
        reason=_ALREADY if plan.model.sharded else ORDER[row.precision],
        commands=_commands(plan, row, source, _sized(row, request, traffic)),
        traffic=traffic,
    )


def _sized(row: PlanRow, request: BuildRequest, traffic: Traffic | None) -> BuildRequest:
    """Return the request with the batch that the traffic was planned with, where it is its own."""
    assert row.recipe is not None
    if traffic is None or traffic.times.slots == row.recipe.limits.max_batch_size:
        return request
    return replace(request, max_batch_size=traffic.times.slots)


def _commands(plan: Plan, row: PlanRow, source: str, request: BuildRequest) -> tuple[str, ...]:
    checkpoint, convert = source, []
    if not plan.model.sharded:
        checkpoint = "checkpoint"
        parallel = ("--tp", str(row.tp)) if row.tp > 1 else ()
        stored = ["--precision", row.precision]
        if plan.model.kv_cache:
            stored += ["--kv-cache", plan.model.kv_cache]
        convert = [("convert", source, "-o", checkpoint, *stored, *parallel)]
    options = _build_options(request)
    build = ("build", checkpoint, "-o", "engine", "--arch", row.target.name, *options)
    return tuple(shlex.join(("minitron-trt", *words)) for words in (*convert, build))


def _build_options(request: BuildRequest) -> tuple[str, ...]:
    """Return what a build must be told so that its engine is the one that was planned."""
    default = BuildRequest()
    chosen = (
        ("--profile", request.profile, default.profile),
        ("--max-batch-size", request.max_batch_size, default.max_batch_size),
        ("--max-seq-len", request.max_seq_len, default.max_seq_len),
    )
    return tuple(
        word for option, value, usual in chosen if value != usual for word in (option, str(value))
    )
