"""What a conversion will do, as a value: every tensor of every rank and the bytes it is made of."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Final

from minitron_trt.checkpoint import rank_file
from minitron_trt.convert.source import ModelSource
from minitron_trt.families import Place, Source, Split, TensorRule, family_of
from minitron_trt.spec import ModelSpec, Parallelism, Precision
from minitron_trt.tensorfile import DTYPE_BYTES, TensorEntry

WORKERS: Final = min(2, os.cpu_count() or 1)
"""Copying is bound by memory bandwidth: two threads saturate it, more only take memory."""
BLOCK_BYTES: Final = 8 << 20
_INTERPRETER_BYTES = 60_000_000
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
    plus_one: bool

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

    @property
    def output_bytes(self) -> int:
        """Return the size of all tensors of all ranks."""
        return sum(tensor.size_bytes for rank in self.ranks for tensor in rank)

    @property
    def peak_memory_bytes(self) -> int:
        """Return a forecast of private memory: it depends on the buffers, not on the model."""
        return _INTERPRETER_BYTES + WORKERS * _COPIES_PER_BLOCK * BLOCK_BYTES

    def to_json(self) -> dict[str, Any]:
        """Return the summary that --dry-run prints."""
        return {
            "architecture": self.spec.architecture,
            "precision": self.precision.name,
            "tp": self.parallelism.tp,
            "pp": self.parallelism.pp,
            "output_bytes": self.output_bytes,
            "peak_memory_bytes": self.peak_memory_bytes,
            "ranks": [
                {
                    "file": rank_file(rank),
                    "tensors": len(tensors),
                    "bytes": sum(tensor.size_bytes for tensor in tensors),
                }
                for rank, tensors in enumerate(self.ranks)
            ],
        }


def plan_conversion(
    source: ModelSource, precision: Precision, parallelism: Parallelism
) -> ConversionPlan:
    """Lay out every rank's tensors; UnsupportedError when the model cannot be cut this way."""
    parallelism.check(source.spec)
    ranks = tuple(
        tuple(_rank_tensors(source, precision, parallelism, pp_rank, tp_rank))
        for pp_rank in range(parallelism.pp)
        for tp_rank in range(parallelism.tp)
    )
    return ConversionPlan(source.spec, precision, parallelism, ranks)


def _rank_tensors(
    source: ModelSource,
    precision: Precision,
    parallelism: Parallelism,
    pp_rank: int,
    tp_rank: int,
) -> Iterator[TensorPlan]:
    spec, tp = source.spec, parallelism.tp
    layers = parallelism.layers_of(pp_rank, spec.layers)
    held = {
        Place.FIRST: range(1) if pp_rank == 0 else range(0),
        Place.LAYER: layers,
        Place.LAST: range(1) if pp_rank == parallelism.pp - 1 else range(0),
    }
    for place in Place:
        for layer in held[place]:
            for rule in family_of(spec.architecture).rules:
                if rule.place is place:
                    # TensorRT-LLM counts a rank's layers from 0.
                    name = rule.target.format(layer - layers.start)
                    shape, parts = _cut(rule, layer, spec, source.tensors, tp_rank, tp)
                    yield TensorPlan(name, precision.storage, shape, parts, rule.plus_one)


def _cut(
    rule: TensorRule,
    layer: int,
    spec: ModelSpec,
    tensors: Mapping[str, TensorEntry],
    tp_rank: int,
    tp: int,
) -> tuple[tuple[int, ...], tuple[Part, ...]]:
    """Return the shape of a rank's tensor and the source rectangles that fill it."""
    parts, at = [], 0
    for origin in rule.sources:
        entry = tensors[origin.name.format(layer)]
        rows, columns = _share(rule.split, origin, entry, spec, tp_rank, tp)
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
