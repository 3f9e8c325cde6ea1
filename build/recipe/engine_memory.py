"""How much GPU memory an engine takes: weights, KV cache, activations and the runtime's share.

Weights and KV bytes follow from the shapes and are exact. The rest is an estimate:

    activations   what one step holds at its widest: residual and normed rows beside the wider of
                  attention and MLP, for max_num_tokens rows, and the float32 logits twice
    reserve       CUDA context, kernels' code and the runtime's own buffers: 1.5 GiB, and 0.5 GiB
                  for NCCL when there are several GPUs. An assumption, not a measurement
    KV pool       0.9 of what is left, TensorRT-LLM's default kv_cache_free_gpu_mem_fraction
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any, Final

from minitron_trt.build.engine_model import EngineModel
from minitron_trt.families import FAMILIES, Place, Split, TensorRule, family_of
from minitron_trt.spec import ModelSpec

RESERVE_BYTES: Final = 3 << 29
NCCL_BYTES: Final = 1 << 29
KV_FRACTION: Final = 0.9
LOGIT_BYTES: Final = 4
GROUP: Final = 128  # weights that share a scale in the AWQ formats
NVFP4_BLOCK: Final = 16

Sizes = Mapping[str, Callable[[int, int], int]]
# Bytes of a linear layer of `rows` outputs and `columns` inputs, with its scales.
_RESIDENT: Final[Sizes] = MappingProxyType(
    {
        "bf16": lambda rows, columns: 2 * rows * columns,
        "fp16": lambda rows, columns: 2 * rows * columns,
        "fp8": lambda rows, columns: rows * columns + 8,
        "fp8-rowwise": lambda rows, columns: rows * columns + 4 * rows,
        "w8a16": lambda rows, columns: rows * columns + 2 * rows,
        "w4a16": lambda rows, columns: rows * columns // 2 + 2 * rows,
        "w4a16-awq": lambda rows, columns: _awq(rows, columns, 2),
        "w4a8-awq": lambda rows, columns: _awq(rows, columns, 2) + 8,
        "nvfp4": lambda rows, columns: rows * columns // 2 + rows * columns // NVFP4_BLOCK + 12,
    }
)
# In a checkpoint, TensorRT-LLM expects some of them otherwise than it keeps them.
_STORED: Final[Sizes] = MappingProxyType(
    {
        **_RESIDENT,
        "w8a16": lambda rows, columns: 2 * rows * columns,
        "w4a16": lambda rows, columns: 2 * rows * columns,
        "w4a16-awq": lambda rows, columns: _awq(rows, columns, 4),
        "w4a8-awq": lambda rows, columns: _awq(rows, columns, 4) + 8,
        "nvfp4": lambda rows, columns: rows * columns // 2 + rows * columns // NVFP4_BLOCK + 8,
    }
)


def _awq(rows: int, columns: int, scale_bytes: int) -> int:
    return rows * columns // 2 + scale_bytes * (rows * columns // GROUP) + 2 * columns


def checkpoint_bytes(model: EngineModel) -> int:
    """Return the bytes of all tensors of a checkpoint, all ranks."""
    return model.parallelism.tp * sum(_stages(model, _STORED))


def weights_bytes(model: EngineModel) -> int:
    """Return the bytes of the weights on the fullest GPU."""
    return max(_stages(model, _RESIDENT))


def pipeline_weights_bytes(model: EngineModel) -> int:
    """Return the bytes of the weights of one tensor-parallel rank in all pipeline stages."""
    return sum(_stages(model, _RESIDENT))


def embedding_bytes(model: EngineModel) -> int:
    """Return the bytes of the embedding table, of which a step reads only a few rows."""
    return 2 * model.spec.vocab * model.spec.hidden


def _stages(model: EngineModel, sizes: Sizes) -> list[int]:
    return [_stage_bytes(model, stage, sizes) for stage in range(model.parallelism.pp)]


def _stage_bytes(model: EngineModel, stage: int, sizes: Sizes) -> int:
    spec, parallelism = model.spec, model.parallelism
    counts = {
        Place.FIRST: int(stage == 0),
        Place.LAYER: len(parallelism.layers_of(stage, spec.layers)),
        Place.LAST: int(stage == parallelism.pp - 1),
    }
    total = 0
    for rule in family_of(spec.architecture).rules:
        shape = rank_shape(rule, spec, parallelism.tp)
        linear = rule.place is Place.LAYER and len(shape) == 2
        size = sizes[model.precision](*shape) if linear else 2 * prod(shape)
        total += counts[rule.place] * size
    scale = 4 if model.kv_cache else 0
    return total + counts[Place.LAYER] * scale


def rank_shape(rule: TensorRule, spec: ModelSpec, tp: int) -> tuple[int, ...]:
    """Return the shape of a tensor on one of `tp` ranks."""
    rows, *columns = rule.sources[0].shape(spec)
    if rule.split is Split.QKV:
        return ((spec.heads + 2 * max(spec.kv_heads, tp)) * spec.head_size // tp, *columns)
    if rule.split is Split.COLUMN:
        return (rows // tp, *columns)
    if rule.split is Split.ROW:
        return (rows, columns[0] // tp)
    if rule.split is Split.VOCAB:
        return (-(-rows // tp), *columns)
    return (rows, *columns)


def kv_bytes_per_token(model: EngineModel) -> int:
    """Return the bytes that one token takes in the KV cache of the fullest GPU."""
    layers = len(model.parallelism.layers_of(0, model.spec.layers))
    return layers * kv_bytes_per_layer(model)


def kv_bytes_per_layer(model: EngineModel) -> int:
    """Return the bytes that one token takes in one layer's KV cache on one GPU."""
    heads = max(model.spec.kv_heads // model.parallelism.tp, 1)
    return 2 * heads * model.spec.head_size * model.kv_cache_bytes


def activation_bytes(
    model: EngineModel, max_num_tokens: int, sequences: int, *, context_logits: bool = False
) -> int:
    """Return an estimate of what one step holds besides weights and cache."""
    spec, tp = model.spec, model.parallelism.tp
    family = FAMILIES.get(spec.architecture)
    attention = 2 * spec.query_size + 2 * spec.kv_size
    mlp = (2 if family and not family.gated else 3) * spec.intermediate
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


def reserve_bytes(model: EngineModel) -> int:
    """Return what the runtime keeps for itself on each GPU."""
    return RESERVE_BYTES + (NCCL_BYTES if model.parallelism.world_size > 1 else 0)
