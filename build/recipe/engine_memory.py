"""How much GPU memory an engine takes: weights, KV cache, activations and the runtime's share.

Weights and KV bytes follow from the shapes and are exact. The rest is an estimate:

    activations   what one step holds at its widest: residual and normed rows beside the wider of
                  attention and MLP, for max_num_tokens rows, and the float32 logits twice
    reserve       CUDA context, kernels' code and the runtime's own buffers: 1.5 GiB, and 0.5 GiB
                  for NCCL when there are several GPUs. An assumption, not a measurement
    KV pool       0.9 of what is left, TensorRT-LLM's default kv_cache_free_gpu_mem_fraction
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, Final

from minitron_trt.build.engine_model import EngineModel
from minitron_trt.checkpoint_tensors import held_layers, shard_shape
from minitron_trt.dtypes import DTYPES
from minitron_trt.families import FAMILIES, Place, family_of
from minitron_trt.gpus import Gpu
from minitron_trt.quantization.precisions import KV_SCALE, PRECISIONS

RESERVE_BYTES: Final = 3 << 29
NCCL_BYTES: Final = 1 << 29
KV_FRACTION: Final = 0.9
LOGIT_BYTES: Final = 4
LinearBytes = Callable[[int, int], int]
"""The bytes of a linear layer of [rows, columns], with its scales."""


def checkpoint_bytes(model: EngineModel) -> int:
    """Return the bytes of all tensors of a checkpoint, all ranks."""
    return model.parallelism.tp * sum(_stages(model, PRECISIONS[model.precision].stored_bytes))


# A recipe forecasts memory some six times for one model, and a plan makes many recipes of it.
@lru_cache(maxsize=256)
def weights_bytes(model: EngineModel) -> int:
    """Return the bytes of the weights on the fullest GPU."""
    return max(_stages(model, PRECISIONS[model.precision].resident_bytes))


def pipeline_weights_bytes(model: EngineModel) -> int:
    """Return the bytes of the weights of one tensor-parallel rank in all pipeline stages."""
    return sum(_stages(model, PRECISIONS[model.precision].resident_bytes))


def embedding_bytes(model: EngineModel) -> int:
    """Return the bytes of the embedding table, of which a step reads only a few rows."""
    return 2 * model.spec.vocab * model.spec.hidden


def _stages(model: EngineModel, linear_bytes: LinearBytes) -> list[int]:
    return [_stage_bytes(model, stage, linear_bytes) for stage in range(model.parallelism.pp)]


def _stage_bytes(model: EngineModel, stage: int, linear_bytes: LinearBytes) -> int:
    spec, parallelism = model.spec, model.parallelism
    plain_bytes = DTYPES[PRECISIONS[model.precision].storage].size_bytes
    held = held_layers(spec, parallelism, stage)
    total = 0
    for rule in family_of(spec.architecture).rules:
        shape = shard_shape(rule, spec, parallelism.tp)
        size = linear_bytes(*shape) if rule.linear else plain_bytes * prod(shape)
        total += len(held[rule.place]) * size
    scale = KV_SCALE.size_bytes(1, 1) if model.kv_cache else 0
    return total + len(held[Place.LAYER]) * scale


def kv_bytes_per_token(model: EngineModel) -> int:
    """Return the bytes that one token takes in the KV cache of the fullest GPU."""
    # Where the layers do not divide, the first stage has one more.
    layers = len(model.parallelism.layers_of(0, model.spec.layers))
    return layers * kv_bytes_per_layer(model)


def kv_bytes_per_layer(model: EngineModel) -> int:
    """Return the bytes that one token takes in one layer's KV cache on one GPU."""
    # With more ranks than key/value heads, several ranks have the same one.
    heads = max(model.spec.kv_heads // model.parallelism.tp, 1)
    return 2 * heads * model.spec.head_size * model.kv_cache_bytes


def activation_bytes(
    model: EngineModel, max_num_tokens: int, sequences: int, *, context_logits: bool = False
) -> int:
    """Return an estimate of what one step holds besides weights and cache."""
    spec, tp = model.spec, model.parallelism.tp
    family = FAMILIES.get(spec.architecture)
    # q and what it attends to, k and v; of an MLP its branches and, where it is gated, their
    # product.
    attention = 2 * spec.query_size + 2 * spec.kv_size
    mlp = (2 if family and not family.gated else 3) * spec.intermediate
    # Two bytes a value: rows are in the model's 16-bit dtype. Residual and normed rows are whole on
    # every rank, the others shared out.
    rows = 2 * max_num_tokens * (2 * spec.hidden + max(attention, mlp) // tp)
    logits = 2 * sequences + (max_num_tokens if context_logits else 0)
    return rows + logits * spec.vocab * LOGIT_BYTES


@dataclass(frozen=True, slots=True)
class Forecast:
    """What lies in one GPU's memory; `kv_pool_bytes` below 0 is what is missing."""

    gpu_bytes: int
    weights_bytes: int
    activation_bytes: int
    reserve_bytes: int
    kv_bytes_per_token: int
    tokens_per_block: int

    @property
    def free_bytes(self) -> int:
        """Return what is left for the KV cache; below 0 is what is missing."""
        return self.gpu_bytes - self.weights_bytes - self.activation_bytes - self.reserve_bytes

    @property
    def kv_pool_bytes(self) -> int:
        """Return the KV cache that TensorRT-LLM will allocate."""
        return int(max(self.free_bytes, 0) * KV_FRACTION)

    @property
    def kv_tokens(self) -> int:
        """Return how many tokens fit in the KV cache, in whole blocks."""
        blocks = self.kv_pool_bytes // (self.kv_bytes_per_token * self.tokens_per_block)
        return blocks * self.tokens_per_block

    def sequences(self, tokens: int) -> int:
        """Return how many sequences of a length fit at once."""
        return self.kv_tokens // (-(-tokens // self.tokens_per_block) * self.tokens_per_block)

    def to_json(self) -> dict[str, Any]:
        """Return the record that --json prints."""
        return {
            "gpu_bytes": self.gpu_bytes,
            "weights_bytes": self.weights_bytes,
            "activation_bytes": self.activation_bytes,
            "reserve_bytes": self.reserve_bytes,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "kv_pool_bytes": self.kv_pool_bytes,
            "kv_tokens": self.kv_tokens,
        }


def forecast_memory(
    model: EngineModel,
    gpu: Gpu,
    *,
    max_num_tokens: int,
    sequences: int,
    tokens_per_block: int,
    weights: int | None = None,
    context_logits: bool = False,
) -> Forecast:
    """Return what lies in the memory of a GPU that runs so many sequences at once.

    `weights` are the bytes of files; without, those of the model's shapes.
    """
    return Forecast(
        gpu_bytes=gpu.memory_bytes,
        weights_bytes=weights_bytes(model) if weights is None else weights,
        activation_bytes=activation_bytes(
            model, max_num_tokens, sequences, context_logits=context_logits
        ),
        reserve_bytes=reserve_bytes(model),
        kv_bytes_per_token=kv_bytes_per_token(model),
        tokens_per_block=tokens_per_block,
    )


def reserve_bytes(model: EngineModel) -> int:
    """Return what the runtime keeps for itself on each GPU."""
    return RESERVE_BYTES + (NCCL_BYTES if model.parallelism.world_size > 1 else 0)
