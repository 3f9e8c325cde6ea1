"""What a conversion will do, as a value: every tensor of every rank and the bytes it is made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, Final

from minitron_trt.artifacts import WEIGHTS_NAME
from minitron_trt.checkpoint import rank_file
from minitron_trt.checkpoint_tensors import CheckpointTensor, rank_tensors
from minitron_trt.convert.sharding import shard
from minitron_trt.convert.source.model_folder import ModelSource
from minitron_trt.convert.source.stored_scales import Scale
from minitron_trt.dtypes import DTYPES
from minitron_trt.errors import UnsupportedError
from minitron_trt.families import KEY_PROJECTION, VALUE_PROJECTION, TensorRule
from minitron_trt.quantization.precisions import Precision, Side, Stored
from minitron_trt.spec import ModelSpec, Parallelism
from minitron_trt.tensorfile import TensorEntry

BLOCK_BYTES: Final = 2 << 20
"""How much of a tensor is held at once: it stays in the processor's cache between two steps."""


@dataclass(frozen=True, slots=True)
class Part:
    """A rectangle of a source tensor; it fills whole rows of the target from row `at` on.

    `rows` and `columns` are [start, stop) of the source; a vector has one column.
    """

    source: TensorEntry
    rows: tuple[int, int]
    columns: tuple[int, int]
    at: int
    scale: Scale = 1.0  # what the source's numbers are multiplied by


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One tensor of one rank; target rows that no part covers are zero."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    plus_one: bool = False
    linear: str | None = None  # the layer that a quantized tensor or its scale belongs to
    stored: Stored | None = None
    calibrated_as: str = ""  # that layer by the checkpoint's name, as calibration knows it
    amax_group: str = ""  # layers of one group share the amax of their weights
    caches: tuple[str, ...] = ()  # of a KV cache's scale: the projections whose outputs it is for
    value: float | None = None  # of a scale that the source brought along

    @property
    def size_bytes(self) -> int:
        """Return how many bytes the tensor takes."""
        return prod(self.shape) * DTYPES[self.dtype].size_bytes


@dataclass(frozen=True, slots=True)
class Rounding:
    """What storing weights of one format in another changed; `largest` is relative, 1 is all."""

    source: str  # the formats, as numpy and torch name them
    stored: str
    values: int = 0
    changed: int = 0
    zeroed: int = 0  # of the changed, those that are 0 now
    largest: float = 0.0
    largest_in: str = ""  # the tensor that it happened in

    def to_json(self) -> dict[str, Any]:
        """Return the record that --json prints and the manifest keeps."""
        return {
            "from": self.source,
            "to": self.stored,
            "values": self.values,
            "changed": self.changed,
            "became_zero": self.zeroed,
            "largest_relative_change": self.largest,
            **({"largest_in": self.largest_in} if self.largest_in else {}),
        }

    def __str__(self) -> str:
        formats = f"{self.source} to {self.stored}"
        if not self.changed:
            return f"{formats}: all {self.values:,} values are as they were"
        zeroed = f", {self.zeroed:,} became 0" if self.zeroed else ""
        return (
            f"{formats}: {self.changed:,} of {self.values:,} values rounded, by at most "
            f"{self.largest:.2g} of themselves ({self.largest_in}){zeroed}"
        )


@dataclass(frozen=True, slots=True)
class ConversionPlan:
    """Everything that a conversion will write, known before its first byte."""

    spec: ModelSpec
    precision: Precision
    parallelism: Parallelism
    ranks: tuple[tuple[TensorPlan, ...], ...]
    kv_cache: str | None = None
    form: str = "trtllm"  # or "hf"
    calibration_tokens: int = 0  # of one batch, which run through the model together
    roundings: tuple[Rounding, ...] = ()  # what carrying it out has changed

    def file(self, rank: int) -> str:
        """Return the name of a rank's file."""
        return rank_file(rank) if self.form == "trtllm" else WEIGHTS_NAME

    @property
    def measures_inputs(self) -> bool:
        """Return whether text must show the inputs' amax; a source may have brought the scales."""
        return self.precision.calibrated and any(t.linear for rank in self.ranks for t in rank)

    @property
    def measures_kv_cache(self) -> bool:
        """Return whether text must show the amax of keys and values."""
        return any(tensor.caches for rank in self.ranks for tensor in rank)

    @property
    def calibrated(self) -> bool:
        """Return whether text has to run through the model first."""
        return self.measures_inputs or self.measures_kv_cache

    @property
    def output_bytes(self) -> int:
        """Return the size of all tensors of all ranks."""
        return sum(tensor.size_bytes for rank in self.ranks for tensor in rank)

    def to_json(self) -> dict[str, Any]:
        """Return the summary that is printed."""
        return {
            "architecture": self.spec.architecture,
            "precision": self.precision.name,
            **({"kv_cache": self.kv_cache} if self.kv_cache else {}),
            "tp": self.parallelism.tp,
            "pp": self.parallelism.pp,
            "output_bytes": self.output_bytes,
            "ranks": [
                {
                    "file": self.file(rank),
                    "tensors": len(tensors),
                    "bytes": sum(tensor.size_bytes for tensor in tensors),
                }
                for rank, tensors in enumerate(self.ranks)
            ],
            **self.losses(),
        }

    def losses(self) -> dict[str, Any]:
        """Return what is recorded of the roundings, if there were any."""
        records = [rounding.to_json() for rounding in self.roundings]
        return {"rounding": records} if records else {}


def plan_conversion(
    source: ModelSource,
    precision: Precision,
    parallelism: Parallelism,
    kv_cache: str | None = None,
) -> ConversionPlan:
    """Lay out every rank's tensors; UnsupportedError when the model cannot be sharded this way."""
    precision.check(source.spec.architecture, kv_cache)
    parallelism.check(source.spec)
    ranks = tuple(
        tuple(
            sorted(
                _rank_tensors(_Rank(source, precision, parallelism, pp_rank, tp_rank), kv_cache),
                key=_is_weight,
            )
        )
        for pp_rank in range(parallelism.pp)
        for tp_rank in range(parallelism.tp)
    )
    return ConversionPlan(source.spec, precision, parallelism, ranks, kv_cache)


@dataclass(frozen=True, slots=True)
class _Rank:
    """The rank whose tensors are being laid out, and what they are made from."""

    source: ModelSource
    precision: Precision
    parallelism: Parallelism
    pp_rank: int
    tp_rank: int


def _is_weight(tensor: TensorPlan) -> bool:
    """Return False for scales, which go first in a file: then no scale lies between fc and gate.

    `build.tensorrt` maps two weights that lie together as one matrix, and copies them otherwise.
    """
    return tensor.stored is None or not tensor.stored.is_scale


def _rank_tensors(rank: _Rank, kv_cache: str | None) -> Iterator[TensorPlan]:
    """Yield the tensors of a rank with the bytes that each is made of."""
    for tensor in rank_tensors(
        rank.source.spec,
        rank.precision,
        rank.parallelism,
        pp_rank=rank.pp_rank,
        kv_cache=kv_cache,
    ):
        if tensor.rule is None:
            # The scale of a KV cache is measured, not made of a tensor of the source.
            yield TensorPlan(
                name=tensor.name,
                dtype=tensor.dtype,
                shape=tensor.shape,
                parts=(),
                stored=tensor.stored,
                # Keys and values have one scale in TensorRT-LLM.
                caches=(
                    KEY_PROJECTION.format(tensor.layer),
                    VALUE_PROJECTION.format(tensor.layer),
                ),
            )
        else:
            yield _tensor(tensor, tensor.rule, rank)


def _tensor(tensor: CheckpointTensor, rule: TensorRule, rank: _Rank) -> TensorPlan:
    parts = tuple(_parts(rule, tensor.layer, rank))
    if tensor.stored is None:
        return TensorPlan(tensor.name, tensor.dtype, tensor.shape, parts, rule.plus_one)
    weight = f"{tensor.name.removesuffix(tensor.stored.suffix)}weight"
    check_groups(tensor.stored, weight, parts, rank.precision, rank.parallelism.tp)
    linear = str(rule.linear).format(tensor.layer)
    return TensorPlan(
        name=tensor.name,
        dtype=tensor.dtype,
        shape=tensor.shape,
        parts=parts,
        linear=linear,
        stored=tensor.stored,
        calibrated_as=linear,
        amax_group=fused(linear),
    )


def fused(linear: str) -> str:
    """Return the name of the matrix that a layer becomes part of: fc and gate are fused.

    Runtimes bring what they fuse to the largest scale, which would round a second time; so scales
    are made equal from the start.
    """
    return linear.removesuffix("gate") + "fc" if linear.endswith("mlp.gate") else linear


def check_groups(
    stored: Stored, name: str, parts: tuple[Part, ...], precision: Precision, tp: int
) -> None:
    """Raise UnsupportedError where a rank's shard ends between values that are stored together."""
    for axis in stored.axes:
        for part in parts:
            start, stop = part.columns if axis.side is Side.IN else part.rows
            if axis.side is not Side.ONE and (start % axis.per or stop % axis.per):
                what = "columns" if axis.side is Side.IN else "rows"
                raise UnsupportedError(
                    f"--precision {precision.name} groups {axis.per} {what}, which do not "
                    f"divide the {stop - start} of {name} with --tp {tp}"
                )


def _parts(rule: TensorRule, layer: int, rank: _Rank) -> Iterator[Part]:
    """Yield the source rectangles that fill a rank's tensor, one below the other."""
    at = 0
    for origin in rule.sources:
        name = origin.name.format(layer)
        entry = rank.source.tensors[name]
        rows, columns = shard(
            rule.split,
            origin,
            entry,
            rank.source.spec,
            tp_rank=rank.tp_rank,
            tp=rank.parallelism.tp,
        )
        yield Part(entry, rows, columns, at, rank.source.scale_of(name))
        at += rows[1] - rows[0]
