"""What a GPU cannot beat: bounds from its bandwidth and multiplication rate, never predictions.

A step reads every weight once (of the embedding only a few rows) and the cached keys and values of
every sequence; it multiplies each weight twice per token (a multiplication and an addition counts
as 2). It takes at least the longer of the two. Kernels' launch times, communication between GPUs
and everything that is not a matrix product are left out, so real engines are slower.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from minitron_trt.build.engine_model import EngineModel
from minitron_trt.build.recipe.engine_memory import (
    embedding_bytes,
    kv_bytes_per_layer,
    pipeline_weights_bytes,
)
from minitron_trt.checkpoint_tensors import shard_shape
from minitron_trt.families import Place, family_of
from minitron_trt.gpus import Gpu


@dataclass(frozen=True, slots=True)
class Bounds:
    """The least time of a prompt, and the most tokens per second, alone and in a full batch."""

    prefill_s: float
    decode_tokens_per_s: float
    batch: int
    batch_tokens_per_s: float

    def to_json(self) -> dict[str, Any]:
        """Return the record that --json prints."""
        return {
            "what": "upper bounds from bandwidth and arithmetic, not predictions",
            "prefill_ms_at_least": round(self.prefill_s * 1e3, 3),
            "decode_tokens_per_s_at_most": round(self.decode_tokens_per_s, 1),
            "batch": self.batch,
            "batch_tokens_per_s_at_most": round(self.batch_tokens_per_s, 1),
        }


def bounds(model: EngineModel, gpu: Gpu, input_len: int, output_len: int, batch: int) -> Bounds:
    """Return the bounds for a prompt and for decoding halfway through the output."""
    context = input_len + output_len // 2
    head_flops = 2 * model.spec.vocab * model.spec.hidden // model.parallelism.tp
    # Only the last token of a prompt goes through the head; each token sees half the prompt.
    prefill_flops = input_len * _layer_flops(model, input_len // 2) + head_flops
    step_flops = _layer_flops(model, context) + head_flops
    alone = _step_s(model, gpu, step_flops, context)
    together = _step_s(model, gpu, batch * step_flops, batch * context) if batch else 0.0
    # One sequence's steps go through the pipeline one by one; several, or chunks, keep it full.
    stages = model.parallelism.pp
    return Bounds(
        prefill_s=_step_s(model, gpu, prefill_flops, 0) / stages,
        decode_tokens_per_s=1 / alone,
        batch=batch,
        batch_tokens_per_s=batch * stages / together if batch else 0.0,
    )


def _layer_flops(model: EngineModel, context: int) -> int:
    """Return what one token costs in all layers of one GPU, at a context length."""
    spec, tp = model.spec, model.parallelism.tp
    weights = sum(
        prod(shard_shape(rule, spec, tp))
        for rule in family_of(spec.architecture).rules
        if rule.place is Place.LAYER and len(shard_shape(rule, spec, tp)) == 2
    )
    # Scores and their sum over the values: two products with the context.
    attention = 2 * context * spec.query_size // tp
    return 2 * spec.layers * (weights + attention)


def _step_s(model: EngineModel, gpu: Gpu, flops: int, cached_tokens: int) -> float:
    read = pipeline_weights_bytes(model) - embedding_bytes(model)
    read += cached_tokens * model.spec.layers * kv_bytes_per_layer(model)
    return max(flops / (gpu.tflops(model.precision) * 1e12), read / (gpu.bandwidth_gbs * 1e9))
