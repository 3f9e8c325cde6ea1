"""What plan, verify, eval perplexity, eval tasks and bench print with --json, read back.

A record names what the report shows; what else a file holds is ignored, so that lm-eval's own
results and aiperf's own files are read as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

import msgspec

from minitron_trt.errors import BadInputError
from minitron_trt.evaluate.perplexity import Estimate
from minitron_trt.evaluate.tasks.harness_results import HarnessResults, task_scores
from minitron_trt.evaluate.tasks.task_record import KIND as TASKS_KIND
from minitron_trt.evaluate.tasks.task_record import TaskModel, TaskRecord
from minitron_trt.records import check_record, read_record

_BENCH_FILE: Final = "profile_export_aiperf.json"


class Memory(msgspec.Struct, frozen=True):
    """What a GPU's memory is for, in bytes."""

    gpu_bytes: int
    weights_bytes: int
    activation_bytes: int
    reserve_bytes: int
    kv_pool_bytes: int


class ReportedBounds(msgspec.Struct, frozen=True):
    """What no engine beats."""

    prefill_ms_at_least: float
    decode_tokens_per_s_at_most: float


class ReportedRow(msgspec.Struct, frozen=True):
    """A precision on a GPU; what does not fit has a problem."""

    gpu: str
    precision: str
    tp: int
    fits: bool
    sequences: int | None = None
    memory: Memory | None = None
    bounds: ReportedBounds | None = None
    problem: str | None = None


class Recommended(msgspec.Struct, frozen=True):
    """What to do on a GPU, and why."""

    gpu: str
    precision: str
    tp: int
    reason: str
    commands: tuple[str, ...]


class PlanResult(msgspec.Struct, frozen=True):
    """A plan."""

    model: str
    architecture: str
    parameters: int
    input_len: int
    output_len: int
    rows: tuple[ReportedRow, ...]
    recommended: tuple[Recommended, ...]


class ReportedLayer(msgspec.Struct, frozen=True):
    """How far a layer is from the source's."""

    layer: int
    relative: float
    largest: float
    mean: float
    cosine: float


class ReportedLogits(msgspec.Struct, frozen=True):
    """How far the logits are."""

    largest: float
    mean: float
    cosine: float
    kl: float
    same_top: float


class VerifyResult(msgspec.Struct, frozen=True):
    """A checkpoint beside its source."""

    precision: str
    kv_cache: str | None
    tokens: int
    bound: float
    layers: tuple[ReportedLayer, ...]
    logits: ReportedLogits
    fault: str | None


class ScoredModel(msgspec.Struct, frozen=True):
    """A model's figures on a text; the baseline has no divergence, a server no size."""

    name: str = msgspec.field(name="model")
    size_bytes: int | None
    scored_tokens: int
    perplexity: Estimate
    kl: Estimate | None = None
    same_top: Estimate | None = None

    def __post_init__(self) -> None:
        """Refuse a perplexity that no text has."""
        if self.perplexity.value < 1:
            raise BadInputError(
                f"{self.name} has a perplexity of {self.perplexity.value}; expected 1 or more"
            )


class PerplexityResult(msgspec.Struct, frozen=True):
    """Models on a text, the baseline first."""

    models: Annotated[tuple[ScoredModel, ...], msgspec.Meta(min_length=1)]


class BenchResult(msgspec.Struct, frozen=True):
    """One load, its figures by aiperf's tag and statistic."""

    load: str
    model: str
    figures: Mapping[str, Mapping[str, float]]
    is_complete: bool


Result: TypeAlias = PlanResult | VerifyResult | PerplexityResult | TaskRecord | BenchResult


def read_results(path: Path) -> Iterator[Result]:
    """Yield what a file, or the folder that bench wrote, holds.

    BadInputError where that is none of these results, or a damaged one.
    """
    if path.is_dir():
        files = sorted(path.rglob(_BENCH_FILE), key=lambda file: _numbers(str(file)))
        if not files:
            raise BadInputError(
                f"{path} is a folder without {_BENCH_FILE}; expected one that bench -o wrote, or "
                "a file of JSON"
            )
        for file in files:
            yield from read_results(file)
        return
    try:
        yield from _results(read_record(path, dict[str, Any]))
    except ValueError as error:
        raise BadInputError(
            f"{path} is not what plan, verify, eval perplexity, eval tasks or bench print with "
            f"--json ({error}); pass such files"
        ) from error


def _results(record: dict[str, Any]) -> Iterator[Result]:
    # Told apart by what only one of them has; eval tasks has `models`, too, so it is asked first.
    if "recommended" in record:
        yield check_record(record, PlanResult)
    elif "layers" in record:
        yield check_record(record, VerifyResult)
    elif record.get("kind") == TASKS_KIND:
        yield check_record(record, TaskRecord)
    elif "results" in record:
        yield _of_lm_eval(check_record(record, HarnessResults))
    elif "models" in record:
        yield check_record(record, PerplexityResult)
    elif "loads" in record:
        for load in check_record(record["loads"], list[dict[str, Any]]):
            yield _load(load)
    elif "request_throughput" in record:
        yield _load(record)
    else:
        raise ValueError(f"it has {', '.join(list(record)[:6]) or 'nothing'}")


def _of_lm_eval(found: HarnessResults) -> TaskRecord:
    name = found.model_name or "model"
    model = TaskModel(name, source=name, tasks=tuple(task_scores(found)))
    return TaskRecord(found.lm_eval_version, preset=None, limit=None, models=(model,))


def _load(record: dict[str, Any]) -> BenchResult:
    # Of what stands in aiperf's object, metrics are what has a unit.
    metrics = {
        tag: check_record(value, dict[str, Any])
        for tag, value in record.items()
        if isinstance(value, dict) and "unit" in value
    }
    own = check_record(record.get("minitron_trt", {}), dict[str, Any])
    settings = check_record(own.get("settings", {}), dict[str, Any])
    return BenchResult(
        load=str(own.get("load", "load")),
        model=str(settings.get("model", "")),
        # Beside numbers a metric has its unit, a text.
        figures={
            tag: {name: float(x) for name, x in value.items() if isinstance(x, (int, float))}
            for tag, value in metrics.items()
        },
        is_complete=bool(record.get("is_complete", True)),
    )


def _numbers(text: str) -> list[tuple[bool, float, str]]:
    """Return a key by which concurrency_2 comes before concurrency_10."""
    parts = re.split(r"(\d+)", text)
    return [(part.isdigit(), float(part) if part.isdigit() else 0.0, part) for part in parts]
