"""What NVIDIA measured: throughput at maximum load, from the documentation of its releases.

`published.json` has the figures with where each table stands. They are of dense models; a batch is
fixed where the table says so, and else what fits into the KV cache.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from minitron_trt.build.engine_model import EngineModel
from minitron_trt.build.plan.roofline import Work, request_work
from minitron_trt.build.recipe.engine_memory import forecast_memory
from minitron_trt.gpus import Gpu, find_gpu
from minitron_trt.spec import ModelSpec, Rope

_DATA: Final = Path(__file__).with_name("published.json")
# Of trtllm-bench, which made the figures: its largest batch, and the tokens of one step.
_MOST_SEQUENCES: Final = 2048
_STEP_TOKENS: Final = 8192
_TOKENS_PER_BLOCK: Final = 32


@dataclass(frozen=True, slots=True)
class Measurement:
    """One published figure; `batch` is what ran at once, fixed or by the memory."""

    source: str
    model: EngineModel
    gpu: Gpu
    input_len: int
    output_len: int
    tokens_per_s: float
    batch: int
    work: Work  # of one request, its share of every step included


@functools.cache
def measurements() -> tuple[Measurement, ...]:
    """Return all published figures."""
    record = json.loads(_DATA.read_text(encoding="utf-8"))
    specs = {name: _spec(sizes) for name, sizes in record["models"].items()}
    return tuple(
        _measurement(table, specs[table["model"]], lengths, figure)
        for table in record["tables"]
        for lengths, figure in table["tokens_per_s"].items()
    )


def _spec(sizes: dict[str, Any]) -> ModelSpec:
    # Positions, norm and rotation cost nothing that counts here.
    return ModelSpec(
        architecture="LlamaForCausalLM",
        max_positions=131072,
        norm_epsilon=1e-5,
        rope=Rope(500000.0),
        **sizes,
    )


def _measurement(
    table: dict[str, Any], spec: ModelSpec, lengths: str, tokens_per_s: float
) -> Measurement:
    precision = table["precision"]
    # trtllm-bench gives engines of FP8 and FP4 an FP8 cache.
    kv_cache = "fp8" if precision in ("fp8", "nvfp4") else None
    model = EngineModel(table["model"], spec).stored_as(precision).sharded_for(table["tp"])
    model = dataclasses.replace(model, kv_cache=kv_cache)
    gpu = find_gpu(table["gpu"])
    input_len, output_len = (int(length) for length in lengths.split(", "))
    batch = table.get("batch") or _fitting(model, gpu, input_len + output_len)
    return Measurement(
        source=table["source"],
        model=model,
        gpu=gpu,
        input_len=input_len,
        output_len=output_len,
        tokens_per_s=tokens_per_s,
        batch=batch,
        work=request_work(model, gpu, input_len, output_len, batch=batch),
    )


def _fitting(model: EngineModel, gpu: Gpu, tokens: int) -> int:
    forecast = forecast_memory(
        model,
        gpu,
        max_num_tokens=_STEP_TOKENS,
        sequences=_MOST_SEQUENCES,
        tokens_per_block=_TOKENS_PER_BLOCK,
    )
    return min(forecast.sequences(tokens), _MOST_SEQUENCES)
