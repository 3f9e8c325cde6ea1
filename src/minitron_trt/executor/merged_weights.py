"""Read a TensorRT-LLM checkpoint back into whole tensors: ranks merged, pipeline layers in place.

A checkpoint cuts each tensor across its tensor-parallel ranks as the tensor's rule says, and counts
the layers of each pipeline rank from 0. A quantized layer has several tensors instead of a weight;
an axis of theirs that counts the weight's rows or columns is cut as those are, the others are not.
Files are memory-mapped; only joining a tensor copies it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import torch

from minitron_trt.checkpoint import Checkpoint, rank_file
from minitron_trt.dtypes import DTYPES
from minitron_trt.errors import BadInputError
from minitron_trt.families import Place, Split, TensorRule, family_of
from minitron_trt.quantization.precisions import KV_SCALE, Axis, Side, Stored
from minitron_trt.spec import ModelSpec
from minitron_trt.tensorfile import TensorEntry

TORCH_DTYPES: Final[Mapping[str, torch.dtype]] = MappingProxyType(
    {
        dtype.stored_as: torch.uint8 if dtype.is_code else getattr(torch, dtype.name)
        for dtype in DTYPES.values()
    }
)
"""What torch calls the dtypes of stored tensors; 1-byte floats are read as their codes."""


@dataclass(frozen=True, slots=True)
class _Expected:
    """A tensor that every tensor-parallel rank of a pipeline rank must hold."""

    name: str
    whole_name: str
    split: Split
    stored: Stored
    shape: tuple[int, ...]


def read_weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Return the whole tensors of a checkpoint by name, layers counted through the model.

    BadInputError names the tensors that are missing, left over or of another shape or dtype, and
    those of which the ranks hold different copies.
    """
    weights = {}
    tp = checkpoint.parallelism.tp
    for pp_rank in range(checkpoint.parallelism.pp):
        expected = tuple(_expected(checkpoint, pp_rank))
        ranks = [_read_rank(checkpoint, pp_rank * tp + rank, expected) for rank in range(tp)]
        for tensor in expected:
            shards = [rank[tensor.name] for rank in ranks]
            try:
                weights[tensor.whole_name] = _merge(tensor, checkpoint.spec, shards)
            except _CopiesDiffer:
                raise BadInputError(
                    f"{checkpoint.folder}: the ranks hold different copies of {tensor.name!r}; "
                    "convert again"
                ) from None
    return weights


def _expected(checkpoint: Checkpoint, pp_rank: int) -> Iterator[_Expected]:
    spec, parallelism = checkpoint.spec, checkpoint.parallelism
    layers = parallelism.layers_of(pp_rank, spec.layers)
    for rule in family_of(spec.architecture).rules:
        if rule.place is Place.LAYER:
            for layer in layers:
                yield from _tensors(rule, checkpoint, layer - layers.start, layer)
        elif pp_rank == (0 if rule.place is Place.FIRST else parallelism.pp - 1):
            yield from _tensors(rule, checkpoint, 0, 0)
    if checkpoint.kv_cache:
        name = f"transformer.layers.{{}}.{KV_SCALE.suffix}"
        for layer in layers:
            local = name.format(layer - layers.start)
            yield _Expected(local, name.format(layer), Split.WHOLE, KV_SCALE, (1,))


def _tensors(
    rule: TensorRule, checkpoint: Checkpoint, local: int, layer: int
) -> Iterator[_Expected]:
    """Yield the tensors of a rule: its weight, or what a quantized layer has instead."""
    precision = checkpoint.precision
    shape = _rank_shape(rule, checkpoint.spec, checkpoint.parallelism.tp)
    if rule.linear is None or not precision.tensors:
        plain = Stored("", precision.storage, (Axis(Side.OUT), Axis(Side.IN))[: len(shape)])
        yield _Expected(
            rule.target.format(local), rule.target.format(layer), rule.split, plain, shape
        )
        return
    rows, columns = shape
    for stored in precision.tensors:
        yield _Expected(
            f"{rule.linear.format(local)}.{stored.suffix}",
            f"{rule.linear.format(layer)}.{stored.suffix}",
            *(rule.split, stored, stored.shape(rows, columns)),
        )


def _rank_shape(rule: TensorRule, spec: ModelSpec, tp: int) -> tuple[int, ...]:
    rows, *columns = rule.sources[0].shape(spec)
    if rule.split is Split.QKV:
        rows = _query_rows(spec, tp) + 2 * _kv_rows(spec, tp)
    elif rule.split in (Split.COLUMN, Split.VOCAB):
        rows = -(-rows // tp)
    elif rule.split is Split.ROW:
        columns = [columns[0] // tp]
    return (rows, *columns)


def _query_rows(spec: ModelSpec, tp: int) -> int:
    return spec.query_size // tp


def _kv_rows(spec: ModelSpec, tp: int) -> int:
    return max(spec.kv_heads // tp, 1) * spec.head_size


def _read_rank(
    checkpoint: Checkpoint, rank: int, expected: Sequence[_Expected]
) -> dict[str, torch.Tensor]:
    entries = checkpoint.tensors(rank)
    path = checkpoint.folder / rank_file(rank)
    wanted = {tensor.name: (tensor.stored.storage, tensor.shape) for tensor in expected}
    missing, extra = sorted(wanted.keys() - entries.keys()), sorted(entries.keys() - wanted.keys())
    if missing or extra:
        said = [f"lacks {', '.join(missing)}"] * bool(missing)
        said += [f"has {', '.join(extra)}, which its config.json does not call for"] * bool(extra)
        raise BadInputError(f"{path} {' and '.join(said)}; convert again")
    wrong = [
        f"{name} is {entry.dtype} {list(entry.shape)}, expected {dtype} {list(shape)}"
        for name, entry in entries.items()
        for dtype, shape in [wanted[name]]
        if (entry.dtype, entry.shape) != (dtype, shape)
    ]
    if wrong:
        raise BadInputError(f"{path}: {'; '.join(wrong)}; convert again")
    return _map_tensors(path, entries)


def _map_tensors(path: Path, entries: Mapping[str, TensorEntry]) -> dict[str, torch.Tensor]:
    size = path.stat().st_size
    # A private mapping: nothing that writes to a tensor reaches the file.
    data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    return {name: _view(data, entry) for name, entry in entries.items()}


def _view(data: torch.Tensor, entry: TensorEntry) -> torch.Tensor:
    part = data[entry.offset : entry.offset + entry.size_bytes]
    dtype = TORCH_DTYPES[entry.dtype]
    # Another writer's header may leave the data at an odd offset.
    aligned = part if entry.offset % dtype.itemsize == 0 else part.clone()
    return aligned.view(dtype).view(entry.shape)


class _CopiesDiffer(Exception):  # noqa: N818 - it never leaves this module
    pass


def _merge(tensor: _Expected, spec: ModelSpec, shards: Sequence[torch.Tensor]) -> torch.Tensor:
    side = Side.IN if tensor.split is Split.ROW else Side.OUT
    dimension = tensor.stored.dimension(side)
    if tensor.split is Split.WHOLE or dimension is None:
        return _same(shards)
    if len(shards) == 1:
        return shards[0]
    if tensor.split is Split.QKV:
        return _merge_qkv(spec, shards, tensor.stored.axes[dimension].per)
    joined = torch.cat(list(shards), dim=dimension)
    return joined[: spec.vocab] if tensor.split is Split.VOCAB else joined


def _merge_qkv(spec: ModelSpec, shards: Sequence[torch.Tensor], per: int) -> torch.Tensor:
    """Join q, k and v apart; with more ranks than key/value heads, neighbours hold copies."""
    tp = len(shards)
    query, kv = _query_rows(spec, tp) // per, _kv_rows(spec, tp) // per
    copies = max(tp // spec.kv_heads, 1)
    queries, keys, values = zip(
        *(torch.split(shard, [query, kv, kv]) for shard in shards), strict=True
    )
    joined = [*queries]
    for parts in (keys, values):
        joined += [_same(parts[start : start + copies]) for start in range(0, tp, copies)]
    return torch.cat(joined)


def _same(copies: Sequence[torch.Tensor]) -> torch.Tensor:
    first, *others = copies
    if not all(torch.equal(first, other) for other in others):
        raise _CopiesDiffer
    return first
