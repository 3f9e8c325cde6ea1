"""Weights in zarr: a folder for each tensor, with a description in JSON and a file for each chunk.

NeMo 24.05 writes version 2 of the format, uncompressed, with one chunk for each layer and
tensor-parallel rank. Only that is read here; it takes neither zarr nor a pickle.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from minitron_trt.convert.nemo.archive import ByteRange
from minitron_trt.convert.nemo.stored_array import ByteBox, StoredArray
from minitron_trt.dtypes import DTYPES
from minitron_trt.errors import BadInputError, UnsupportedError

ARRAY_NAME: Final = ".zarray"
_DTYPES: Final[Mapping[str, str]] = MappingProxyType(
    {"bfloat16": "BF16", "<f2": "F16", "<f4": "F32", "<f8": "F64"}
)


def read_zarr(files: Mapping[str, ByteRange]) -> dict[str, StoredArray]:
    """Return the tensors of a folder of zarr arrays by name."""
    arrays: dict[str, StoredArray] = {}
    for path, file in files.items():
        name, _, last = path.rpartition("/")
        if last == ARRAY_NAME and not name.endswith("_extra_state"):
            arrays[name] = _array(name, file, files)
    return arrays


def _array(name: str, file: ByteRange, files: Mapping[str, ByteRange]) -> StoredArray:
    record = _record(name, file)
    dtype = _DTYPES[record["dtype"]]
    shape, chunks = tuple(record["shape"]), tuple(record["chunks"])
    counts = [-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True)]
    missing = BadInputError(
        f"{name} lacks a chunk of its zarr array; the checkpoint is not whole: download it again"
    )
    # A damaged shape could claim billions of chunks, each of which is looked for below.
    if math.prod(counts) > len(files):
        raise missing
    size = math.prod(chunks) * DTYPES[dtype].size_bytes
    separator = record.get("dimension_separator", ".")
    pieces = []
    for place in itertools.product(*(range(count) for count in counts)):
        chunk = files.get(f"{name}/{separator.join(map(str, place))}")
        if chunk is None:
            raise missing
        if chunk.size != size:
            raise BadInputError(
                f"{chunk.name} is {chunk.size} bytes; a chunk of {list(chunks)} in {dtype} is "
                f"{size}: download it again"
            )
        start = tuple(index * width for index, width in zip(place, chunks, strict=True))
        pieces.append(ByteBox(chunk, start, chunks))
    return StoredArray(name, dtype, shape, tuple(pieces))


def _record(name: str, file: ByteRange) -> Mapping[str, Any]:
    """Return an array's description, checked; UnsupportedError for what NeMo never writes."""
    try:
        record: Any = json.loads(file.read())
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{file.name} is not JSON ({error}); download it again") from error
    if not isinstance(record, dict) or not _fit(record.get("shape"), record.get("chunks")):
        raise BadInputError(f"{file.name} has no shape and chunks of a zarr array")
    for key, expected in (
        ("zarr_format", (2,)),
        ("compressor", (None,)),
        ("filters", (None,)),
        ("order", ("C",)),
        ("dtype", tuple(_DTYPES)),
        ("dimension_separator", (".", "/")),
    ):
        value = record.get(key, "." if key == "dimension_separator" else None)
        if value not in expected:
            raise UnsupportedError(
                f"{name}: its zarr array has {key} {value!r}; expected "
                f"{' or '.join(map(str, expected))}"
            )
    return record


def _fit(shape: Any, chunks: Any) -> bool:
    """Return whether shape and chunks are sizes of one to three axes."""
    return (
        isinstance(shape, list)
        and isinstance(chunks, list)
        and 0 < len(shape) == len(chunks) <= 3
        and all(type(size) is int and size > 0 for size in (*shape, *chunks))
    )
