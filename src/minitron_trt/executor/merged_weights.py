"""Read a TensorRT-LLM checkpoint back into whole tensors: shards merged, layers counted through.

Which tensors a rank must hold is said by `checkpoint_tensors`. How their shards become whole again
is written here, from the meaning of each `Split` and apart from `convert.sharding`, which makes
them: each is the other's witness. An axis of a quantized layer's tensor that counts the weight's
rows or columns is joined as those are; tensors without such an axis are copies of each other.
Files are memory-mapped; only joining a tensor copies it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

import torch

from minitron_trt.checkpoint import Checkpoint, rank_file
from minitron_trt.checkpoint_tensors import CheckpointTensor, rank_tensors
from minitron_trt.dtypes import DTYPES
from minitron_trt.errors import BadInputError
from minitron_trt.families import Place, Split
from minitron_trt.quantization.precisions import Side
from minitron_trt.spec import ModelSpec
from minitron_trt.tensorfile import TensorEntry

TORCH_DTYPES: Final[Mapping[str, torch.dtype]] = MappingProxyType(
    {
        dtype.stored_as: torch.uint8 if dtype.is_code else getattr(torch, dtype.name)
        for dtype in DTYPES.values()
    }
)
"""What torch calls the dtypes of stored tensors; 1-byte floats are read as their codes."""


def read_weights(checkpoint: Checkpoint, layers: range | None = None) -> dict[str, torch.Tensor]:
    """Return the whole tensors of a checkpoint by name, layers counted through the model.

    `layers` reads these alone; an empty range, what comes before and after all layers.
    BadInputError names the tensors that are missing, left over or of another shape or dtype, and
    those of which the ranks hold different copies.
    """
    weights = {}
    tp = checkpoint.parallelism.tp
    for pp_rank in range(checkpoint.parallelism.pp):
        expected = tuple(
            rank_tensors(
                checkpoint.spec,
                checkpoint.precision,
                checkpoint.parallelism,
                pp_rank=pp_rank,
                kv_cache=checkpoint.kv_cache,
                parallel_embedding=checkpoint.parallel_embedding,
            )
        )
        ranks = [_read_rank(checkpoint, pp_rank * tp + rank, expected) for rank in range(tp)]
        for tensor in expected:
            if layers is not None and not _is_among(layers, tensor):
                continue
            shards = [rank[tensor.name] for rank in ranks]
            try:
                weights[tensor.whole_name] = _merge(tensor, checkpoint.spec, shards)
            except _CopiesDiffer:
                raise BadInputError(
                    f"{checkpoint.folder}: the ranks hold different copies of {tensor.name!r}; "
                    "convert again"
                ) from None
    return weights


def _is_among(layers: range, tensor: CheckpointTensor) -> bool:
    is_layers = tensor.place is Place.LAYER
    return is_layers and tensor.layer in layers if layers else not is_layers


def _query_rows(spec: ModelSpec, tp: int) -> int:
    return spec.query_size // tp


def _kv_rows(spec: ModelSpec, tp: int) -> int:
    return max(spec.kv_heads // tp, 1) * spec.head_size


def _read_rank(
    checkpoint: Checkpoint, rank: int, expected: Sequence[CheckpointTensor]
) -> dict[str, torch.Tensor]:
    entries = checkpoint.tensors(rank)
    path = checkpoint.folder / rank_file(rank)
    wanted = {tensor.name: (tensor.dtype, tensor.shape) for tensor in expected}
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


def _merge(
    tensor: CheckpointTensor, spec: ModelSpec, shards: Sequence[torch.Tensor]
) -> torch.Tensor:
    side = Side.IN if tensor.split is Split.ROW else Side.OUT
    dimension = tensor.dimension(side)
    if tensor.split is Split.WHOLE or dimension is None:
        # Ranks that differ here would compute with different models.
        return _same(shards)
    if len(shards) == 1:
        return shards[0]
    if tensor.split is Split.QKV:
        return _merge_qkv(spec, shards, tensor.values_per_entry(dimension))
    joined = torch.cat(list(shards), dim=dimension)
    # Rows beyond the vocabulary only make it divide by the ranks.
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
