"""What a conversion will do, as a value: every tensor of every rank and the bytes it is made of."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, Final

from minitron_trt.checkpoint import rank_file
from minitron_trt.convert.source import ModelSource
from minitron_trt.errors import UnsupportedError
from minitron_trt.families import Place, Source, Split, TensorRule, family_of
from minitron_trt.precisions import KV_SCALE, Need, Precision, Side, Stored
from minitron_trt.spec import ModelSpec, Parallelism
from minitron_trt.tensorfile import DTYPE_BYTES, TensorEntry

WORKERS: Final = min(2, os.cpu_count() or 1)
"""Copying is bound by memory bandwidth: two threads saturate it, more only take memory."""
BLOCK_BYTES: Final = 8 << 20
_INTERPRETER_BYTES = 60_000_000
_MOST_WORKERS = 8  # then the disk is what is waited for
QUANTIZED_BLOCK_BYTES: Final = 2 << 20  # what lies between two steps then stays near the processor
_SMALL_INTERPRETER_BYTES = 24_000_000
_LIBRARIES_BYTES = 430_000_000  # torch, transformers and ModelOpt
_COPIES_PER_QUANTIZED_BLOCK = 8  # the block, float32 forms of twice its size, codes
_COPIES_PER_ACTIVATION = 16  # bytes: some bfloat16 and float32 forms of a token's values
_COPIES_PER_BLOCK = 4  # the block, its float32 form, the converted form, a column slice


@dataclass(frozen=True, slots=True)
class Part:
    """A rectangle of a source tensor; it fills whole rows of the target from row `at` on."""

    source: TensorEntry
    rows: tuple[int, int]
    columns: tuple[int, int]
    at: int


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
    calibrated_as: str = ""  # the checkpoint's name of that layer
    ranged_with: str = ""  # layers of one such name share the range of their weights

    @property
    def size_bytes(self) -> int:
        """Return how many bytes the tensor takes."""
        return prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class ConversionPlan:
    """Everything a conversion will write, known before a byte is."""

    spec: ModelSpec
    precision: Precision
    parallelism: Parallelism
    ranks: tuple[tuple[TensorPlan, ...], ...]
    kv_cache: str | None = None
    form: str = "trtllm"  # or "hf"
    calibration_tokens: int = 0  # that run together

    def file(self, rank: int) -> str:
        """Return the name of a rank's file."""
        return rank_file(rank) if self.form == "trtllm" else "model.safetensors"

    @property
    def calibrated(self) -> bool:
        """Return whether text has to run through the model first."""
        return self.precision.calibrated or self.kv_cache is not None

    @property
    def output_bytes(self) -> int:
        """Return the size of all tensors of all ranks."""
        return sum(tensor.size_bytes for rank in self.ranks for tensor in rank)

    @property
    def workers(self) -> int:
        """Return how many tensors are made at once: as many as cores where it is arithmetic."""
        return min(_MOST_WORKERS, os.cpu_count() or 1) if self.precision.tensors else WORKERS

    @property
    def peak_memory_bytes(self) -> int:
        """Return a forecast of private memory: mapped files and the page cache are not counted."""
        if self.precision.tensors:
            worker = _COPIES_PER_QUANTIZED_BLOCK * QUANTIZED_BLOCK_BYTES
            writing = _SMALL_INTERPRETER_BYTES + self.workers * worker
        else:
            writing = _INTERPRETER_BYTES + self.workers * _COPIES_PER_BLOCK * BLOCK_BYTES
        return writing + self._calibration_bytes if self.calibrated else writing

    @property
    def _calibration_bytes(self) -> int:
        spec = self.spec
        values = spec.query_size + spec.hidden + spec.intermediate
        tokens = self.calibration_tokens * _COPIES_PER_ACTIVATION * values
        # AWQ scales the weights of the linear layers, so that they leave their files.
        parts = [t for rank in self.ranks for t in rank if t.stored and t.stored.suffix == "weight"]
        scaled = (
            sum(prod(t.shape) for t in parts) * 4 if Need.PREQUANT in self.precision.needs else 0
        )
        return _LIBRARIES_BYTES + tokens + scaled

    def to_json(self) -> dict[str, Any]:
        """Return the summary that --dry-run prints."""
        return {
            "architecture": self.spec.architecture,
            "precision": self.precision.name,
            **({"kv_cache": self.kv_cache} if self.kv_cache else {}),
            "tp": self.parallelism.tp,
            "pp": self.parallelism.pp,
            "output_bytes": self.output_bytes,
            "peak_memory_bytes": self.peak_memory_bytes,
            "ranks": [
                {
                    "file": self.file(rank),
                    "tensors": len(tensors),
                    "bytes": sum(tensor.size_bytes for tensor in tensors),
                }
                for rank, tensors in enumerate(self.ranks)
            ],
        }


def plan_conversion(
    source: ModelSource,
    precision: Precision,
    parallelism: Parallelism,
    kv_cache: str | None = None,
) -> ConversionPlan:
    """Lay out every rank's tensors; UnsupportedError when the model cannot be cut this way."""
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
    """Whose tensors are being laid out."""

    source: ModelSource
    precision: Precision
    parallelism: Parallelism
    pp_rank: int
    tp_rank: int

    @property
    def layers(self) -> dict[Place, range]:
        """The layers held in each place; the model's ends count as one."""
        last = self.pp_rank == self.parallelism.pp - 1
        return {
            Place.FIRST: range(self.pp_rank == 0),
            Place.LAYER: self.parallelism.layers_of(self.pp_rank, self.source.spec.layers),
            Place.LAST: range(last),
        }


def _is_weight(tensor: TensorPlan) -> bool:
    """Scales go first: an engine builder maps fc and gate as one matrix when they lie together."""
    return tensor.stored is None or not tensor.stored.is_scale


def _rank_tensors(rank: _Rank, kv_cache: str | None) -> Iterator[TensorPlan]:
    rules = family_of(rank.source.spec.architecture).rules
    for place, layers in rank.layers.items():
        for layer in layers:
            for rule in rules:
                if rule.place is place:
                    yield from _tensors(rule, layer, layer - layers.start, rank)
            if kv_cache and place is Place.LAYER:
                name = f"transformer.layers.{{}}.{KV_SCALE.suffix}"
                yield TensorPlan(
                    *(name.format(layer - layers.start), KV_SCALE.storage, (1,), ()),
                    linear=name.format(layer),
                    stored=KV_SCALE,
                )


def _tensors(rule: TensorRule, layer: int, local: int, rank: _Rank) -> Iterator[TensorPlan]:
    """Yield the tensors of a rule: one, or a quantized layer's several."""
    # TensorRT-LLM counts a rank's layers from 0.
    name, linear = rule.target.format(local), rule.linear
    shape, parts = _cut(rule, layer, rank)
    if linear is None or not rank.precision.tensors:
        yield TensorPlan(name, rank.precision.storage, shape, parts, rule.plus_one)
        return
    rows, columns = shape
    for stored in rank.precision.tensors:
        check_groups(stored, name, parts, rank.precision, rank.parallelism.tp)
        yield TensorPlan(
            f"{linear.format(local)}.{stored.suffix}",
            stored.storage,
            stored.shape(rows, columns),
            # What does not grow with the rows is written once, by the first source.
            parts if stored.per_row else parts[:1],
            linear=linear.format(layer),
            stored=stored,
            calibrated_as=linear.format(layer),
            ranged_with=fused(linear.format(layer)),
        )


def fused(linear: str) -> str:
    """Return the name of the matrix that a layer becomes part of: fc and gate are fused.

    Their scales are merged by the larger then, so they are made equal from the start.
    """
    return linear.removesuffix("gate") + "fc" if linear.endswith("mlp.gate") else linear


def check_groups(
    stored: Stored, name: str, parts: tuple[Part, ...], precision: Precision, tp: int
) -> None:
    """Raise UnsupportedError where a rank's share cuts through values stored together."""
    for axis in stored.axes:
        for part in parts:
            start, stop = part.columns if axis.side is Side.IN else part.rows
            if axis.side is not Side.ONE and (start % axis.per or stop % axis.per):
                what = "columns" if axis.side is Side.IN else "rows"
                raise UnsupportedError(
                    f"--precision {precision.name} groups {axis.per} {what}, which do not "
                    f"divide the {stop - start} of {name} with --tp {tp}"
                )


def _cut(rule: TensorRule, layer: int, rank: _Rank) -> tuple[tuple[int, ...], tuple[Part, ...]]:
    """Return the shape of a rank's tensor and the source rectangles that fill it."""
    spec, tp = rank.source.spec, rank.parallelism.tp
    parts, at = [], 0
    for origin in rule.sources:
        entry = rank.source.tensors[origin.name.format(layer)]
        rows, columns = _share(rule.split, origin, entry, spec, rank.tp_rank, tp)
        parts.append(Part(entry, rows, columns, at))
        at += rows[1] - rows[0]
    if rule.split is Split.VOCAB:
        at = -(-spec.vocab // tp)
    width = parts[0].columns[1] - parts[0].columns[0]
    matrix = len(parts[0].source.shape) == 2
    return ((at, width) if matrix else (at,)), tuple(parts)


def _share(
    split: Split, origin: Source, entry: TensorEntry, spec: ModelSpec, tp_rank: int, tp: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the rows and columns of one source tensor that belong to a tensor-parallel rank."""
    height, width = entry.shape if len(entry.shape) == 2 else (entry.shape[0], 1)
    rows, columns = (0, height), (0, width)
    if split is Split.COLUMN:
        rows = _nth(height // tp, tp_rank)
    elif split is Split.ROW:
        columns = _nth(width // tp, tp_rank)
    elif split is Split.VOCAB:
        start, stop = _nth(-(-height // tp), tp_rank)
        rows = (min(start, height), min(stop, height))
    elif split is Split.QKV and origin.axes[0] == "kv_size" and tp > spec.kv_heads:
        # Each key/value head serves tp / kv_heads neighbouring ranks.
        rows = _nth(spec.head_size, tp_rank * spec.kv_heads // tp)
    elif split is Split.QKV:
        rows = _nth(height // tp, tp_rank)
    return rows, columns


def _nth(size: int, index: int) -> tuple[int, int]:
    return index * size, (index + 1) * size
