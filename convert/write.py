"""Carry out a plan: byte ranges move inside the kernel, the rest through a bounded buffer."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from minitron_trt.checkpoint import rank_file
from minitron_trt.console import Advance
from minitron_trt.convert.plan import BLOCK_BYTES, WORKERS, ConversionPlan, Part, TensorPlan
from minitron_trt.errors import BadInputError
from minitron_trt.tensorfile import DTYPE_BYTES, TensorEntry, lay_out

Array: TypeAlias = NDArray[Any]

_NUMPY: Final[Mapping[str, np.dtype[Any]]] = MappingProxyType(
    {
        "BF16": np.dtype(ml_dtypes.bfloat16),
        "F16": np.dtype(np.float16),
        "F32": np.dtype(np.float32),
    }
)
_RANGE_BYTES = 64 << 20  # between two looks at the progress
# What copy_file_range answers where it cannot serve these files: then the bytes go through memory.
_NO_RANGE_COPY = frozenset({errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM})


@dataclass(frozen=True, slots=True)
class _Destination:
    """Where a part of a source tensor goes."""

    tensor: TensorPlan
    part: Part
    target: TensorEntry


def write_ranks(plan: ConversionPlan, folder: Path, advance: Advance) -> None:
    """Write every rank file of the plan; `advance` hears of the bytes written.

    BadInputError when a source ends early or a value does not fit the precision.
    """
    jobs: dict[TensorEntry, list[_Destination]] = {}
    for rank, tensors in enumerate(plan.ranks):
        path = folder / rank_file(rank)
        header, entries = lay_out(path, ((t.name, t.dtype, t.shape) for t in tensors))
        _reserve(path, header, entries)
        for tensor, target in zip(tensors, entries, strict=True):
            for part in tensor.parts:
                jobs.setdefault(part.source, []).append(_Destination(tensor, part, target))
    with _Files() as files, ThreadPoolExecutor(WORKERS) as pool:
        tasks = [
            pool.submit(_move, source, destinations, files, advance)
            for source, destinations in jobs.items()
        ]
        try:
            for task in tasks:
                task.result()
        except BaseException:
            files.stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _reserve(path: Path, header: bytes, entries: tuple[TensorEntry, ...]) -> None:
    """Write the header and take the space, so that a full disk is met before the work."""
    size = max((entry.offset + entry.size_bytes for entry in entries), default=len(header))
    with path.open("wb") as file:
        file.write(header)
        file.flush()
        os.posix_fallocate(file.fileno(), 0, size)


class _Files:
    """Descriptors shared by the workers: sources for reading, rank files for writing."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._lock = threading.Lock()
        self._open: dict[tuple[Path, int], int] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def descriptor(self, path: Path, flags: int) -> int:
        """Return the descriptor of a file, opened once."""
        with self._lock:
            if (path, flags) not in self._open:
                descriptor = os.open(path, flags | os.O_CLOEXEC)
                self._stack.callback(os.close, descriptor)
                self._open[path, flags] = descriptor
            return self._open[path, flags]


def _move(
    source: TensorEntry, destinations: list[_Destination], files: _Files, advance: Advance
) -> None:
    """Bring one source tensor to all the places that want it."""
    reader = files.descriptor(source.path, os.O_RDONLY)
    changed = []
    for destination in destinations:
        if not _is_copy(destination):
            changed.append(destination)
            continue
        writer = files.descriptor(destination.target.path, os.O_WRONLY)
        stride = _row_bytes(source)
        start, stop = destination.part.rows
        _copy_range(
            (reader, source.offset + start * stride),
            (writer, destination.target.offset + destination.part.at * stride),
            (stop - start) * stride,
            files,
            advance,
        )
    if changed:
        _stream(source, reader, changed, files, advance)


def _is_copy(destination: _Destination) -> bool:
    tensor, part = destination.tensor, destination.part
    whole_rows = part.columns == (0, _width(part.source))
    return whole_rows and tensor.dtype == part.source.dtype and not tensor.plus_one


def _width(entry: TensorEntry) -> int:
    return entry.shape[1] if len(entry.shape) == 2 else 1


def _row_bytes(entry: TensorEntry) -> int:
    return _width(entry) * DTYPE_BYTES[entry.dtype]


def _copy_range(
    source: tuple[int, int], target: tuple[int, int], size: int, files: _Files, advance: Advance
) -> None:
    """Copy bytes between (descriptor, offset) pairs, inside the kernel where it can."""
    (reader, read_at), (writer, write_at) = source, target
    while size and not files.stop.is_set():
        want = min(size, _RANGE_BYTES)
        try:
            done = os.copy_file_range(reader, writer, want, read_at, write_at)
        except OSError as error:
            if error.errno not in _NO_RANGE_COPY:
                raise
            block = os.pread(reader, min(want, BLOCK_BYTES), read_at)
            done = len(block)
            _write_all(writer, memoryview(block), write_at)
        if not done:
            raise BadInputError("a source file became shorter while it was read; convert again")
        read_at, write_at, size = read_at + done, write_at + done, size - done
        advance(done)


def _write_all(writer: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.pwrite(writer, data, offset)
        data, offset = data[done:], offset + done


def _stream(
    source: TensorEntry,
    reader: int,
    destinations: list[_Destination],
    files: _Files,
    advance: Advance,
) -> None:
    """Read a tensor once, some rows at a time, and write each destination's share of them."""
    first = min(destination.part.rows[0] for destination in destinations)
    last = max(destination.part.rows[1] for destination in destinations)
    for start, rows in _blocks(source, reader, first, last):
        if files.stop.is_set():
            return
        for destination in destinations:
            part, target = destination.part, destination.target
            low, high = max(start, part.rows[0]), min(start + len(rows), part.rows[1])
            if low >= high:
                continue
            share = rows[low - start : high - start, part.columns[0] : part.columns[1]]
            values = np.ascontiguousarray(_convert(share, destination.tensor))
            stride = values.shape[1] * values.dtype.itemsize
            writer = files.descriptor(target.path, os.O_WRONLY)
            at = target.offset + (part.at + low - part.rows[0]) * stride
            _write_all(writer, values.view(np.uint8).reshape(-1).data, at)
            advance(values.nbytes)


def _blocks(source: TensorEntry, reader: int, first: int, last: int) -> Iterator[tuple[int, Array]]:
    """Yield (first row, rows) of a tensor, BLOCK_BYTES at most at a time."""
    stride = _row_bytes(source)
    height = max(1, BLOCK_BYTES // stride)
    buffer = bytearray(min(height, last - first) * stride)
    for start in range(first, last, height):
        view = memoryview(buffer)[: min(height, last - start) * stride]
        filled = 0
        while filled < len(view):
            at = source.offset + start * stride + filled
            done = os.preadv(reader, [view[filled:]], at)
            if not done:
                raise BadInputError(f"{source.path} became shorter while it was read")
            filled += done
        yield start, np.frombuffer(view, _NUMPY[source.dtype]).reshape(-1, _width(source))


def _convert(values: Array, tensor: TensorPlan) -> Array:
    """Add one where the rule says so and change the number format, rounding to nearest even."""
    wanted = _NUMPY[tensor.dtype]
    if values.dtype == wanted and not tensor.plus_one:
        return values
    wide = values.astype(np.float32)
    if tensor.plus_one:
        wide += np.float32(1)
    with np.errstate(over="ignore"):
        narrow = wide.astype(wanted)
    if np.isinf(narrow.astype(np.float32)).any() and np.isfinite(wide).all():
        raise BadInputError(
            f"tensor {tensor.name} has a value of {np.abs(wide).max():.4g}, which is beyond fp16; "
            "convert with --precision bf16"
        )
    return narrow
