"""What a model would take on GPUs, before one is rented: a table as a value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, Final, TypeVar

from minitron_trt.build.engine_model import EngineModel
from minitron_trt.build.plan.roofline import Bounds, bounds
from minitron_trt.build.recipe.engine_memory import kv_bytes_per_token
from minitron_trt.build.recipe.engine_recipe import EngineRecipe, choose_recipe
from minitron_trt.build.recipe.request import BuildRequest
from minitron_trt.checkpoint_tensors import shard_shape
from minitron_trt.errors import UnsupportedError, UsageError
from minitron_trt.families import Place, family_of
from minitron_trt.gpus import Target, support
from minitron_trt.quantization.precisions import PRECISIONS
from minitron_trt.spec import ModelSpec

T = TypeVar("T")
# Up to the eight GPUs of an HGX board, which NVLink joins.
TP_TRIED: Final = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One GPU, precision and number of ranks; `problem` says why there is no recipe."""

    target: Target
    precision: str
    tp: int
    recipe: EngineRecipe | None = None
    sequences: int = 0
    bounds: Bounds | None = None
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the record that --json prints."""
        record: dict[str, Any] = {
            "gpu": self.target.gpu.name,
            "gpu_figures": self.target.gpu.sure.value,
            "sm": self.target.sm,
            "precision": self.precision,
            "tp": self.tp,
            "fits": self.recipe is not None,
        }
        if self.recipe is None or self.bounds is None:
            return {**record, "problem": self.problem}
        return {
            **record,
            "memory": self.recipe.forecast.to_json(),
            "sequences": self.sequences,
            "bounds": self.bounds.to_json(),
            "recipe": self.recipe.to_json(),
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """A model on several GPUs at one input and output length."""

    model: EngineModel
    input_len: int
    output_len: int
    rows: tuple[PlanRow, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the record that --json prints."""
        return {
            "model": self.model.name,
            "architecture": self.model.spec.architecture,
            "parameters": parameters(self.model.spec),
            "kv_bytes_per_token": kv_bytes_per_token(self.model),
            "input_len": self.input_len,
            "output_len": self.output_len,
            "rows": [row.to_json() for row in self.rows],
        }


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What to plan for; empty precisions and tps mean those that make sense."""

    targets: tuple[Target, ...]
    input_len: int = 1024
    output_len: int = 1024
    precisions: tuple[str, ...] = ()
    tps: tuple[int, ...] = ()
    build: BuildRequest = BuildRequest()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        if self.input_len < 1 or self.output_len < 1:
            raise UsageError(
                f"--input-len {self.input_len} and --output-len {self.output_len}; expected at "
                "least 1 each"
            )


def make_plan(model: EngineModel, request: PlanRequest) -> Plan:
    """Work out every row; UsageError for what the model cannot be, or lengths beyond it."""
    if model.sharded:
        check_own(model, "--precision", model.precision, request.precisions)
        check_own(model, "--tp", model.parallelism.tp, request.tps)
    total, positions = request.input_len + request.output_len, model.spec.max_positions
    if total > positions:
        raise UsageError(
            f"--input-len {request.input_len} and --output-len {request.output_len} are {total} "
            f"tokens; {model.name} has {positions} positions"
        )
    rows = tuple(row for target in request.targets for row in _target_rows(model, target, request))
    return Plan(model, request.input_len, request.output_len, rows)


def check_own(model: EngineModel, option: str, own: T, requested: tuple[T, ...]) -> None:
    """Raise UsageError for what a model that is converted already no longer can be."""
    for value in requested:
        if value != own:
            raise UsageError(
                f"{option} {value}: {model.name} is a checkpoint with {own}; leave it out, or plan "
                "the model that it was made from"
            )


def parameters(spec: ModelSpec) -> int:
    """Return the number of weights, norms included."""
    return sum(
        (spec.layers if rule.place is Place.LAYER else 1) * prod(shard_shape(rule, spec, 1))
        for rule in family_of(spec.architecture).rules
    )


def _target_rows(model: EngineModel, target: Target, request: PlanRequest) -> Iterator[PlanRow]:
    for precision in _precisions(model, target, request):
        stored = model if precision == model.precision else model.stored_as(precision)
        if request.tps or model.sharded:
            for tp in request.tps or (model.parallelism.tp,):
                yield _row(stored, target, tp, request)
        else:
            yield _first_that_fits(_row(stored, target, tp, request) for tp in TP_TRIED)


def _precisions(model: EngineModel, target: Target, request: PlanRequest) -> tuple[str, ...]:
    if model.sharded:
        return (model.precision,)
    if request.precisions:
        return request.precisions
    # fp16 takes what bf16 takes.
    offered = (name for name in PRECISIONS if name != "fp16")
    return tuple(
        name
        for name in offered
        if support(name, target).supported
        and model.spec.architecture not in PRECISIONS[name].refused
    )


def _first_that_fits(rows: Iterable[PlanRow]) -> PlanRow:
    """Return the first row with a recipe; where there is none the first, of the fewest GPUs."""
    fewest = None
    for row in rows:
        if row.recipe is not None:
            return row
        fewest = fewest or row
    assert fewest is not None
    return fewest


def _row(model: EngineModel, target: Target, tp: int, request: PlanRequest) -> PlanRow:
    total = request.input_len + request.output_len
    try:
        sharded = model if model.sharded else model.sharded_for(tp)
        recipe = choose_recipe(sharded, target, request.build)
        if recipe.limits.max_seq_len < total:
            raise UnsupportedError(
                f"a sequence of {total} tokens does not fit: the KV cache holds "
                f"{recipe.forecast.kv_tokens}"
            )
    except UnsupportedError as error:
        return PlanRow(target, model.precision, tp, problem=str(error))
    sequences = recipe.forecast.sequences(total)
    limit = bounds(sharded, target.gpu, request.input_len, request.output_len, sequences)
    return PlanRow(target, model.precision, tp, recipe, sequences, limit)
