"""The weights of a network: a checkpoint's tensors as arrays over its mapped files.

TensorRT takes pointers, so a weight goes from the page cache into the engine and is never a copy
of ours. One engine is one GPU: pipeline ranks are joined, since that only counts layers through,
but tensor-parallel ranks are refused, since that would mean copying.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

from minitron_trt.checkpoint import Checkpoint, rank_file
from minitron_trt.errors import BadInputError, UnsupportedError
from minitron_trt.families import Place, Split, TensorRule, family_of
from minitron_trt.spec import ModelSpec
from minitron_trt.tensorfile import TensorEntry

Array: TypeAlias = npt.NDArray[Any]
Weights: TypeAlias = Mapping[str, Array]

DTYPES: Final[Mapping[str, npt.DTypeLike]] = MappingProxyType(
    {
        "BF16": ml_dtypes.bfloat16,
        "F16": np.float16,
        "F32": np.float32,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
    }
)
"""What numpy calls the dtypes of a checkpoint's tensors."""
PRECISION_NAMES: Final = ("bf16", "fp16", "fp8")
"""What the network can compute; the others need kernels that only TensorRT-LLM has."""


def map_weights(checkpoint: Checkpoint) -> Weights:
    """Return a checkpoint's tensors by name, layers counted through the model.

    UnsupportedError when the network cannot compute its precision or it is cut for several GPUs;
    BadInputError names the tensors that are missing, left over or of another shape or dtype.
    """
    if checkpoint.precision.name not in PRECISION_NAMES:
        raise UnsupportedError(
            f"{checkpoint.folder} is {checkpoint.precision.name} and --compiler tensorrt builds "
            f"{', '.join(PRECISION_NAMES)}; convert again or use --compiler trtllm"
        )
    if checkpoint.kv_cache:
        raise UnsupportedError(
            f"{checkpoint.folder} asks for an {checkpoint.kv_cache} KV cache and TensorRT's cache "
            "layer holds wide values only; convert again with --kv-cache auto or use --compiler "
            "trtllm"
        )
    parallelism = checkpoint.parallelism
    if parallelism.tp > 1:
        raise UnsupportedError(
            f"{checkpoint.folder} is cut for {parallelism.tp} GPUs and --compiler tensorrt builds "
            "for one; convert again with --tp 1 or use --compiler trtllm"
        )
    weights: dict[str, Array] = {}
    for rank in range(parallelism.pp):
        weights |= _map_rank(checkpoint, rank)
    return MappingProxyType(weights)


def _map_rank(checkpoint: Checkpoint, rank: int) -> dict[str, Array]:
    path = checkpoint.folder / rank_file(rank)
    entries = checkpoint.tensors(rank)
    expected = {tensor.name: tensor for tensor in _expected(checkpoint, rank)}
    missing = sorted(expected.keys() - entries.keys())
    extra = sorted(entries.keys() - expected.keys())
    if missing or extra:
        said = [f"lacks {', '.join(missing)}"] * bool(missing)
        said += [f"has {', '.join(extra)}, which this compiler does not know"] * bool(extra)
        raise BadInputError(f"{path} {' and '.join(said)}; convert again")
    for name, tensor in expected.items():
        entry = entries[name]
        if (entry.dtype, entry.shape) != (tensor.storage, tensor.shape):
            raise BadInputError(
                f"{path}: {name} is {entry.dtype} {list(entry.shape)}, expected {tensor.storage} "
                f"{list(tensor.shape)}; convert again"
            )
    data = _map_file(path)
    return {tensor.whole_name: _view(data, entries[name]) for name, tensor in expected.items()}


def joined(first: Array, second: Array) -> Array:
    """Return two matrices as one, below each other: without a copy where they lie so in a file."""
    if first.ctypes.data + first.nbytes != second.ctypes.data or first.dtype != second.dtype:
        return np.concatenate([first, second])
    shape = (len(first) + len(second), *first.shape[1:])
    return np.lib.stride_tricks.as_strided(first, shape, writeable=False)


@dataclass(frozen=True, slots=True)
class _Expected:
    """A tensor that a rank's file must hold."""

    name: str
    whole_name: str
    storage: str
    shape: tuple[int, ...]


def _expected(checkpoint: Checkpoint, rank: int) -> Iterator[_Expected]:
    spec, parallelism = checkpoint.spec, checkpoint.parallelism
    layers = parallelism.layers_of(rank, spec.layers)
    for rule in family_of(spec.architecture).rules:
        for target, storage, shape in _stored(rule, checkpoint):
            if rule.place is Place.LAYER:
                for layer in layers:
                    name = target.format(layer - layers.start)
                    yield _Expected(name, target.format(layer), storage, shape)
            elif rank == (0 if rule.place is Place.FIRST else parallelism.pp - 1):
                yield _Expected(target, target, storage, shape)


def _stored(rule: TensorRule, checkpoint: Checkpoint) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield the name, dtype and shape of each tensor that a rule comes to in a precision."""
    precision, shape = checkpoint.precision, _shape(rule, checkpoint.spec)
    if rule.linear is None or not precision.tensors:
        yield rule.target, precision.storage, shape
        return
    for stored in precision.tensors:
        yield f"{rule.linear}.{stored.suffix}", stored.storage, stored.shape(*shape)


def _shape(rule: TensorRule, spec: ModelSpec) -> tuple[int, ...]:
    rows, *columns = rule.sources[0].shape(spec)
    if rule.split is Split.QKV:
        rows = spec.query_size + 2 * spec.kv_size
    return (rows, *columns)


def _map_file(path: Path) -> npt.NDArray[np.uint8]:
    return np.memmap(path, dtype=np.uint8, mode="r")


def _view(data: npt.NDArray[np.uint8], entry: TensorEntry) -> Array:
    dtype = np.dtype(DTYPES[entry.dtype])
    part = data[entry.offset : entry.offset + entry.size_bytes]
    # Another writer's header may leave the data at an odd offset.
    aligned = part if entry.offset % dtype.itemsize == 0 else part.copy()
    return aligned.view(dtype).reshape(entry.shape)
