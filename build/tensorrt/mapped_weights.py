"""The weights of a network: a checkpoint's tensors as arrays over its mapped files.

TensorRT takes pointers, so a weight goes from the page cache into the engine without a copy in this
process. One engine is one GPU: pipeline ranks are joined, for which layers need only other numbers;
tensor-parallel ranks are refused, for which matrices would have to be put together, a copy each.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from minitron_trt.build.tensorrt.supported import check_supported
from minitron_trt.checkpoint import Checkpoint, rank_file
from minitron_trt.checkpoint_tensors import rank_tensors
from minitron_trt.errors import BadInputError
from minitron_trt.quantization.number_formats import NUMPY_DTYPES
from minitron_trt.tensorfile import TensorEntry

Array: TypeAlias = npt.NDArray[Any]
Weights: TypeAlias = Mapping[str, Array]


def map_weights(checkpoint: Checkpoint) -> Weights:
    """Return a checkpoint's tensors by name, layers counted through the model.

    UnsupportedError when the network cannot compute its precision or it is sharded for several
    GPUs; BadInputError names the tensors that are missing, left over or of another shape or dtype.
    """
    parallelism = checkpoint.parallelism
    check_supported(checkpoint.precision.name, checkpoint.kv_cache, parallelism)
    weights: dict[str, Array] = {}
    for rank in range(parallelism.pp):
        weights |= _map_rank(checkpoint, rank)
    return MappingProxyType(weights)


def _map_rank(checkpoint: Checkpoint, rank: int) -> dict[str, Array]:
    path = checkpoint.folder / rank_file(rank)
    entries = checkpoint.tensors(rank)
    tensors = rank_tensors(
        checkpoint.spec, checkpoint.precision, checkpoint.parallelism, pp_rank=rank
    )
    expected = {tensor.name: tensor for tensor in tensors}
    missing = sorted(expected.keys() - entries.keys())
    extra = sorted(entries.keys() - expected.keys())
    if missing or extra:
        said = [f"lacks {', '.join(missing)}"] * bool(missing)
        said += [f"has {', '.join(extra)}, which this compiler does not know"] * bool(extra)
        raise BadInputError(f"{path} {' and '.join(said)}; convert again")
    for name, tensor in expected.items():
        entry = entries[name]
        if (entry.dtype, entry.shape) != (tensor.dtype, tensor.shape):
            raise BadInputError(
                f"{path}: {name} is {entry.dtype} {list(entry.shape)}, expected {tensor.dtype} "
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


def _map_file(path: Path) -> npt.NDArray[np.uint8]:
    return np.memmap(path, dtype=np.uint8, mode="r")


def _view(data: npt.NDArray[np.uint8], entry: TensorEntry) -> Array:
    dtype = NUMPY_DTYPES[entry.dtype]
    part = data[entry.offset : entry.offset + entry.size_bytes]
    # Another writer's header may leave the data at an odd offset.
    aligned = part if entry.offset % dtype.itemsize == 0 else part.copy()
    return aligned.view(dtype).reshape(entry.shape)
