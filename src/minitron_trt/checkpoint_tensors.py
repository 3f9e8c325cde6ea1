"""Which tensors the file of each rank holds: their names, dtypes and shapes.

The layers of a model are divided among pipeline ranks, and the tensors of a layer among
tensor-parallel ranks; rank = pp_rank * tp + tp_rank, one file each. A file counts its layers from
0. A linear layer has its weight, or the tensors that its precision keeps instead.

Converter, executor, TensorRT's network and memory forecast go by what stands here. How values get
into the shards and out again does not: `convert.sharding` makes the shards, and
`executor.merged_weights` joins them. They are written apart on purpose, as witnesses of each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from minitron_trt.families import Place, Split, TensorRule, family_of
from minitron_trt.quantization.precisions import KV_SCALE, Axis, Precision, Side, Stored
from minitron_trt.spec import ModelSpec, Parallelism

_KV_SCALE_NAME: Final = f"transformer.layers.{{}}.{KV_SCALE.suffix}"


@dataclass(frozen=True, slots=True)
class CheckpointTensor:
    """A tensor of a pipeline rank, of which each tensor-parallel rank has a shard of this shape."""

    name: str  # in the file
    whole_name: str  # with layers counted through the model
    layer: int  # through the model; 0 before and after the layers
    dtype: str  # safetensors' name
    shape: tuple[int, ...]
    rule: TensorRule | None  # None for the scale of a KV cache, which no rule makes
    stored: Stored | None  # which of a quantized layer's tensors it is; None for a plain one

    @property
    def place(self) -> Place:
        """Return where in the model it lies; a KV cache's scale is a layer's."""
        return self.rule.place if self.rule else Place.LAYER

    @property
    def split(self) -> Split:
        """Return how the tensor-parallel ranks divide the weight that it belongs to."""
        return self.rule.split if self.rule else Split.WHOLE

    def dimension(self, side: Side) -> int | None:
        """Return which of its axes counts the weight's outputs or inputs, if one does."""
        if self.stored:
            return self.stored.dimension(side)
        sides = (Side.OUT, Side.IN)[: len(self.shape)]
        return sides.index(side) if side in sides else None

    def values_per_entry(self, dimension: int) -> int:
        """Return how many of the weight's values one entry along an axis stands for."""
        axes = self.stored.axes if self.stored else (Axis(Side.OUT), Axis(Side.IN))
        return axes[dimension].per


def rank_tensors(
    spec: ModelSpec,
    precision: Precision,
    parallelism: Parallelism,
    *,
    pp_rank: int,
    kv_cache: str | None = None,
    parallel_embedding: bool = False,
) -> Iterator[CheckpointTensor]:
    """Yield the tensors of a pipeline rank, layer by layer; not in the order of the file.

    `parallel_embedding` has the ranks share the embedding's vocabulary, as they share the head's.
    """
    rules = family_of(spec.architecture).rules
    if parallel_embedding:
        rules = tuple(
            replace(rule, split=Split.VOCAB) if rule.place is Place.FIRST else rule
            for rule in rules
        )
    for place, layers in held_layers(spec, parallelism, pp_rank).items():
        for layer in layers:
            local = layer - layers.start
            for rule in rules:
                if rule.place is place:
                    yield from _rule_tensors(rule, layer, local, spec, precision, parallelism.tp)
            if kv_cache and place is Place.LAYER:
                yield CheckpointTensor(
                    name=_KV_SCALE_NAME.format(local),
                    whole_name=_KV_SCALE_NAME.format(layer),
                    layer=layer,
                    dtype=KV_SCALE.storage,
                    shape=KV_SCALE.shape(1, 1),
                    rule=None,
                    stored=KV_SCALE,
                )


def _rule_tensors(
    rule: TensorRule, layer: int, local: int, spec: ModelSpec, precision: Precision, tp: int
) -> Iterator[CheckpointTensor]:
    """Yield the tensor of a rule, or what a quantized layer has instead."""
    shape = shard_shape(rule, spec, tp)
    if rule.linear is None or not precision.tensors:
        yield CheckpointTensor(
            name=rule.target.format(local),
            whole_name=rule.target.format(layer),
            layer=layer,
            dtype=precision.storage,
            shape=shape,
            rule=rule,
            stored=None,
        )
        return
    rows, columns = shape
    for stored in precision.tensors:
        target = f"{rule.linear}.{stored.suffix}"
        yield CheckpointTensor(
            name=target.format(local),
            whole_name=target.format(layer),
            layer=layer,
            dtype=stored.storage,
            shape=stored.shape(rows, columns),
            rule=rule,
            stored=stored,
        )


def held_layers(spec: ModelSpec, parallelism: Parallelism, pp_rank: int) -> Mapping[Place, range]:
    """Return the layers that a pipeline rank holds; each end of the model counts as one."""
    return {
        Place.FIRST: range(pp_rank == 0),
        Place.LAYER: parallelism.layers_of(pp_rank, spec.layers),
        Place.LAST: range(pp_rank == parallelism.pp - 1),
    }


def shard_shape(rule: TensorRule, spec: ModelSpec, tp: int) -> tuple[int, ...]:
    """Return the shape of a rule's unquantized tensor on one of `tp` ranks, [out, in] if linear.

    Joined q, k and v have heads / tp query heads and as many key as value heads: kv_heads / tp, or
    one, which several ranks repeat, where there are fewer than ranks. The vocabulary is padded.
    """
    rows, *columns = rule.sources[0].shape(spec)
    if rule.split is Split.QKV:
        rows = (spec.heads + 2 * max(spec.kv_heads, tp)) * spec.head_size // tp
    elif rule.split is Split.COLUMN:
        rows //= tp
    elif rule.split is Split.ROW:
        columns = [columns[0] // tp]
    elif rule.split is Split.VOCAB:
        rows = -(-rows // tp)
    return (rows, *columns)
