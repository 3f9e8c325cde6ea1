"""safetensors files as byte ranges: read and check a header, lay out a new one.

The safetensors library hands out arrays; moving 9 GB at the speed of `cp` needs to know where each
tensor's bytes lie instead. Format: 8 bytes little-endian header length, a JSON header, the data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from minitron_trt.dtypes import DTYPES
from minitron_trt.errors import BadInputError

_HEADER_LIMIT_BYTES = 100_000_000  # the format's own limit
LFS_POINTER: Final = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies: bytes [offset, offset + size) of a file, row-major."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size_bytes(self) -> int:
        """Return how many bytes the tensor takes."""
        return math.prod(self.shape) * DTYPES[self.dtype].size_bytes


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Return the tensors of a safetensors file by name.

    BadInputError when the file is a git-LFS pointer, truncated, or its offsets do not tile the data
    exactly as the shapes say.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(len(LFS_POINTER))
        if prefix == LFS_POINTER:
            raise BadInputError(
                f"{path} is a git-LFS pointer of {size} bytes, not weights; run: git lfs pull"
            )
        length = int.from_bytes(prefix[:8], "little")
        if len(prefix) < 8 or length > min(size - 8, _HEADER_LIMIT_BYTES):
            raise BadInputError(
                f"{path} is {size} bytes but its header claims {length}; "
                "it is truncated or not safetensors: download it again"
            )
        file.seek(8)
        blob = file.read(length)
    try:
        header = json.loads(blob)
        header.pop("__metadata__", None)
        entries = [_entry(path, name, record, 8 + length) for name, record in header.items()]
    except (
        ValueError,
        AttributeError,
        KeyError,
        TypeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise BadInputError(f"{path} has a malformed safetensors header ({error})") from error
    _check_tiling(path, entries, 8 + length, size)
    return {entry.name: entry for entry in entries}


def _entry(path: Path, name: str, record: Mapping[str, Any], base: int) -> TensorEntry:
    start, stop = (int(offset) for offset in record["data_offsets"])
    dtype, shape = record["dtype"], tuple(int(n) for n in record["shape"])
    if dtype not in DTYPES:
        raise BadInputError(f"{path}: tensor {name!r} has dtype {dtype!r}, which is not known")
    if start < 0 or min(shape, default=0) < 0:
        raise BadInputError(
            f"{path}: tensor {name!r} has shape {list(shape)} at offset {start}; neither may be "
            "negative"
        )
    entry = TensorEntry(path, name, dtype, shape, base + start)
    if stop - start != entry.size_bytes:
        raise BadInputError(
            f"{path}: tensor {name!r} spans {stop - start} bytes but {dtype} {list(shape)} needs "
            f"{entry.size_bytes}"
        )
    return entry


def _check_tiling(path: Path, entries: list[TensorEntry], base: int, size: int) -> None:
    at = base
    # A tensor without values begins where its neighbour does, and goes before it.
    for entry in sorted(entries, key=lambda entry: (entry.offset, entry.size_bytes)):
        if entry.offset != at:
            what = "overlaps the one before it" if entry.offset < at else "leaves a gap before it"
            raise BadInputError(f"{path}: tensor {entry.name!r} {what}; download the file again")
        at += entry.size_bytes
    if at != size:
        raise BadInputError(
            f"{path} is {size} bytes but its tensors need {at}; "
            "it is truncated or damaged: download it again"
        )


def lay_out(
    path: Path, tensors: Iterable[tuple[str, str, tuple[int, ...]]]
) -> tuple[bytes, tuple[TensorEntry, ...]]:
    """Return the header of a new file and where each (name, dtype, shape) will lie in it."""
    # transformers before 5 refuses a file whose metadata names no framework.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    entries, at = [], 0
    for name, dtype, shape in tensors:
        entry = TensorEntry(path, name, dtype, shape, at)
        stop = at + entry.size_bytes
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, stop]}
        entries.append(entry)
        at = stop
    blob = json.dumps(header, separators=(",", ":")).encode()
    # The data begins at a multiple of 8, as the safetensors library writes it, so that readers can
    # map it as it lies.
    blob += b" " * (-len(blob) % 8)
    base = 8 + len(blob)
    placed = tuple(
        TensorEntry(path, entry.name, entry.dtype, entry.shape, base + entry.offset)
        for entry in entries
    )
    return len(blob).to_bytes(8, "little") + blob, placed
