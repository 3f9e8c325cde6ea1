"""What a GPU cannot beat: bounds from its bandwidth and multiplication rate, never predictions.

A step reads every weight once (of the embedding only a few rows) and the cached keys and values of
every sequence; it multiplies each weight twice per token (a multiplication and an addition counts
as 2). It takes at least the longer of the two. Kernels' launch times, communication between GPUs
and everything that is not a matrix product are left out, so real engines are slower.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from math import prod
from typing import Any, Final

from minitron_trt.build.engine_model import EngineModel
from minitron_trt.build.recipe.engine_memory import (
    embedding_bytes,
    kv_bytes_per_layer,
    pipeline_weights_bytes,
)
from minitron_trt.checkpoint_tensors import shard_shape
from minitron_trt.families import Place, family_of
from minitron_trt.gpus import Gpu
from minitron_trt.spec import ModelSpec

_ACTIVATION_BYTES: Final = 2
# Of each layer's attention and of its MLP, the ranks' sums are added up.
_ALL_REDUCES: Final = 2


@dataclass(frozen=True, slots=True)
class Work:
    """What a part of a step takes of one GPU: seconds at each resource's full rate, and layers."""

    arithmetic_s: float = 0.0
    memory_s: float = 0.0
    link_s: float = 0.0
    layers: float = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.arithmetic_s + other.arithmetic_s,
            self.memory_s + other.memory_s,
            self.link_s + other.link_s,
            self.layers + other.layers,
        )

    def __mul__(self, times: float) -> Work:
        return Work(
            self.arithmetic_s * times,
            self.memory_s * times,
            self.link_s * times,
            self.layers * times,
        )

    @property
    def least_s(self) -> float:
        """Return the time below which it cannot be done, as arithmetic and memory overlap."""
        return max(self.arithmetic_s, self.memory_s)

    @property
    def bound_by(self) -> str:
        """Return which of the two it waits for."""
        return "arithmetic" if self.arithmetic_s > self.memory_s else "memory bandwidth"


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
    step = step_work(model, gpu)
    token = token_work(model, gpu, input_len, output_len)
    together = (step + token * batch).least_s
    # One sequence's steps go through the pipeline one by one; several, or chunks, keep it full.
    stages = model.parallelism.pp
    return Bounds(
        prefill_s=(step + prompt_work(model, gpu, input_len)).least_s / stages,
        decode_tokens_per_s=1 / (step + token).least_s,
        batch=batch,
        batch_tokens_per_s=batch * stages / together,
    )


def step_work(model: EngineModel, gpu: Gpu) -> Work:
    """Return what every step takes, however many tokens it has: the weights are read once."""
    read = _read_bytes(model)
    return Work(memory_s=read / (gpu.bandwidth_gbs * 1e9), layers=model.spec.layers)


@functools.lru_cache
def _read_bytes(model: EngineModel) -> int:
    return pipeline_weights_bytes(model) - embedding_bytes(model)


def token_work(model: EngineModel, gpu: Gpu, input_len: int, output_len: int) -> Work:
    """Return what each sequence that decodes adds to a step, halfway through its output."""
    context = input_len + output_len // 2
    cached = context * model.spec.layers * kv_bytes_per_layer(model)
    return Work(
        arithmetic_s=_seconds(model, gpu, _layer_flops(model, context) + _head_flops(model)),
        memory_s=cached / (gpu.bandwidth_gbs * 1e9),
        link_s=_link_s(model, gpu, tokens=1),
    )


def prompt_work(model: EngineModel, gpu: Gpu, input_len: int) -> Work:
    """Return what each prompt adds to its step."""
    # No time of memory: at best a prompt's own keys and values are still in the GPU's cache, and
    # bounds are about the best.
    # Only the last token of a prompt goes through the head; each token sees half the prompt.
    flops = input_len * _layer_flops(model, input_len // 2) + _head_flops(model)
    return Work(
        arithmetic_s=_seconds(model, gpu, flops), link_s=_link_s(model, gpu, tokens=input_len)
    )


def request_work(
    model: EngineModel, gpu: Gpu, input_len: int, output_len: int, *, batch: int
) -> Work:
    """Return what a request takes where `batch` run at once: its prompt, tokens, part of steps."""
    # The first token comes of the prompt.
    tokens = token_work(model, gpu, input_len, output_len) * (output_len - 1)
    return (
        prompt_work(model, gpu, input_len) + tokens + step_work(model, gpu) * (output_len / batch)
    )


def _layer_flops(model: EngineModel, context: int) -> int:
    """Return what one token costs in all layers of one GPU, at a context length."""
    spec, tp = model.spec, model.parallelism.tp
    # Scores and their sum over the values: two products with the context.
    attention = 2 * context * spec.query_size // tp
    return 2 * spec.layers * (_layer_weights(spec, tp) + attention)


@functools.lru_cache
def _layer_weights(spec: ModelSpec, tp: int) -> int:
    return sum(
        prod(shard_shape(rule, spec, tp))
        for rule in family_of(spec.architecture).rules
        if rule.place is Place.LAYER and len(shard_shape(rule, spec, tp)) == 2
    )


def _head_flops(model: EngineModel) -> int:
    return 2 * model.spec.vocab * model.spec.hidden // model.parallelism.tp


def _seconds(model: EngineModel, gpu: Gpu, flops: int) -> float:
    return flops / (gpu.tflops(model.precision) * 1e12)


def _link_s(model: EngineModel, gpu: Gpu, tokens: int) -> float:
    """Return how long tensor parallelism's all-reduces keep a GPU's links busy, both ways."""
    spec, tp = model.spec, model.parallelism.tp
    reduced = tokens * _ALL_REDUCES * spec.layers * spec.hidden * _ACTIVATION_BYTES
    # In a ring each rank sends, and receives, every part but its own twice.
    moved = 2 * 2 * (tp - 1) / tp * reduced
    return moved / (gpu.link_gbs * 1e9)
