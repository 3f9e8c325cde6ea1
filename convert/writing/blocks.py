"""Move tensors some rows at a time: open files, blocks of a source, places in the rank files."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from minitron_trt.convert.conversion_plan import BLOCK_BYTES, Part, TensorPlan
from minitron_trt.convert.finite_values import check_finite
from minitron_trt.dtypes import DTYPES
from minitron_trt.errors import BadInputError
from minitron_trt.quantization.number_formats import ARRAY_DTYPES, Array
from minitron_trt.tensorfile import TensorEntry

SHORTER: Final = "a source file became shorter while it was read; convert again"


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a part of a source tensor goes."""

    tensor: TensorPlan
    part: Part
    target: TensorEntry


class Files:
    """Descriptors shared by the workers: sources for reading, rank files for writing."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._lock = threading.Lock()
        # Descriptors rather than file objects: pread and pwrite have no position that threads would
        # share, and a model's thousands of tensors lie in a few files.
        self._open: dict[tuple[Path, int], int] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Files:
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

    def write(self, target: TensorEntry, at: int, values: Array) -> None:
        """Write an array to `at` bytes into a tensor of a rank file."""
        writer = self.descriptor(target.path, os.O_WRONLY)
        flat = np.ascontiguousarray(values).reshape(-1)
        write_all(writer, flat.view(np.uint8).data, target.offset + at)


def check_weights(entries: Iterable[TensorEntry]) -> None:
    """Raise BadInputError when a tensor has a value that is NaN or infinite; all are read."""
    with Files() as files:
        for entry in entries:
            reader = files.descriptor(entry.path, os.O_RDONLY)
            for _ in read_blocks(entry, reader, (0, entry.shape[0]), BLOCK_BYTES):
                pass


def width(entry: TensorEntry) -> int:
    """Return the columns of a tensor; a vector has one."""
    return entry.shape[1] if len(entry.shape) == 2 else 1


def row_bytes(entry: TensorEntry) -> int:
    """Return the bytes of one row."""
    return width(entry) * DTYPES[entry.dtype].size_bytes


def write_all(writer: int, data: memoryview, offset: int) -> None:
    """Write bytes at an offset, in as many calls as the system wants."""
    while data:
        done = os.pwrite(writer, data, offset)
        data, offset = data[done:], offset + done


def read_blocks(
    source: TensorEntry, reader: int, rows: tuple[int, int], block_bytes: int, multiple: int = 1
) -> Iterator[tuple[int, Array]]:
    """Yield (first row, values [rows, columns]) of a tensor, about `block_bytes` at a time.

    FP8 comes as its codes, a vector as one column. A block's height is a multiple of `multiple`;
    the next block takes the same memory.
    BadInputError when a value is NaN or infinite, or the file is shorter than it was.
    """
    first, last = rows
    stride = row_bytes(source)
    height = max(1, block_bytes // (stride * multiple)) * multiple
    buffer = bytearray(min(height, last - first) * stride)
    for start in range(first, last, height):
        view = memoryview(buffer)[: min(height, last - start) * stride]
        filled = 0
        while filled < len(view):
            at = source.offset + start * stride + filled
            try:
                # The system may give less than was asked for, and never more than 2 GiB at once.
                done = os.preadv(reader, [view[filled:]], at)
            except OSError as error:
                raise BadInputError(f"{source.path} cannot be read: {error.strerror}") from error
            if not done:
                raise BadInputError(SHORTER)
            filled += done
        values = np.frombuffer(view, ARRAY_DTYPES[source.dtype]).reshape(-1, width(source))
        check_finite(values, source.name, start)
        yield start, values
