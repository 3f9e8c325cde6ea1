"""Carry out a plan: byte ranges move inside the kernel, the rest through a bounded buffer."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np

from minitron_trt.console import Advance
from minitron_trt.convert.conversion_memory import workers
from minitron_trt.convert.conversion_plan import BLOCK_BYTES, ConversionPlan, TensorPlan
from minitron_trt.convert.writing.blocks import (
    SHORTER,
    Destination,
    Files,
    read_blocks,
    row_bytes,
    width,
    write_all,
)
from minitron_trt.convert.writing.fp8_rescale import scaled
from minitron_trt.convert.writing.quantize import (
    Calibration,
    quantize,
    with_weight_amax,
    write_constants,
)
from minitron_trt.dtypes import FP8
from minitron_trt.errors import BadInputError
from minitron_trt.quantization.number_formats import ARRAY_DTYPES, Array
from minitron_trt.quantization.precisions import Precision
from minitron_trt.tensorfile import TensorEntry, lay_out

NOT_CALIBRATED: Final = Calibration()
_RANGE_BYTES = 64 << 20  # copied in one call, then progress is shown
# Errors by which copy_file_range says that it does not serve these files; they are then read and
# written.
_NO_RANGE_COPY = frozenset({errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM})
_NO_RESERVING = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP})


def write_ranks(
    plan: ConversionPlan,
    folder: Path,
    advance: Advance,
    calibration: Calibration = NOT_CALIBRATED,
) -> None:
    """Write every rank file of the plan; `advance` hears of the bytes written.

    BadInputError when a source ends early or a value does not fit the precision.
    """
    jobs: dict[TensorEntry, list[Destination]] = {}
    placed: list[tuple[TensorPlan, TensorEntry]] = []
    calibration = with_weight_amax(plan, calibration)
    for rank, tensors in enumerate(plan.ranks):
        path = folder / plan.file(rank)
        header, entries = lay_out(path, ((t.name, t.dtype, t.shape) for t in tensors))
        _reserve(path, header, entries)
        for tensor, target in zip(tensors, entries, strict=True):
            placed.append((tensor, target))
            for part in tensor.parts:
                jobs.setdefault(part.source, []).append(Destination(tensor, part, target))
    with Files() as files, ThreadPoolExecutor(workers(plan)) as pool:
        try:
            write_constants(plan, placed, calibration, files, advance)
            tasks = [
                pool.submit(
                    _move, plan.precision, source, destinations, calibration, files, advance
                )
                for source, destinations in jobs.items()
            ]
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
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in _NO_RESERVING:
                raise
            file.truncate(size)


def _move(
    precision: Precision,
    source: TensorEntry,
    destinations: list[Destination],
    calibration: Calibration,
    files: Files,
    advance: Advance,
) -> None:
    """Write one source tensor to every destination, quantized or copied."""
    linear = destinations[0].tensor.linear
    if linear and precision.scheme:
        ranges = calibration.linears[linear]
        quantize(source, destinations, precision.scheme, ranges, files, advance)
    else:
        _copy(source, destinations, files, advance)


def _copy(
    source: TensorEntry, destinations: list[Destination], files: Files, advance: Advance
) -> None:
    """Copy a source tensor, changing its number format where the plan says so."""
    reader = files.descriptor(source.path, os.O_RDONLY)
    changed = []
    for destination in destinations:
        if not _is_copy(destination):
            changed.append(destination)
            continue
        writer = files.descriptor(destination.target.path, os.O_WRONLY)
        stride = row_bytes(source)
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


def _is_copy(destination: Destination) -> bool:
    tensor, part = destination.tensor, destination.part
    whole_rows = part.columns == (0, width(part.source))
    same = tensor.dtype == part.source.dtype and part.scale == 1.0
    return whole_rows and same and not tensor.plus_one


def _copy_range(
    source: tuple[int, int], target: tuple[int, int], size: int, files: Files, advance: Advance
) -> None:
    """Copy bytes between (descriptor, offset) pairs, inside the kernel where it can."""
    (reader, read_at), (writer, write_at) = source, target
    while size and not files.stop.is_set():
        want = min(size, _RANGE_BYTES)
        try:
            done = _copy_file_range(reader, writer, want, read_at, write_at)
        except OSError as error:
            if error.errno not in _NO_RANGE_COPY:
                raise
            block = os.pread(reader, min(want, BLOCK_BYTES), read_at)
            done = len(block)
            write_all(writer, memoryview(block), write_at)
        if not done:
            raise BadInputError(SHORTER)
        read_at, write_at, size = read_at + done, write_at + done, size - done
        advance(done)


def _copy_file_range(reader: int, writer: int, size: int, read_at: int, write_at: int) -> int:
    # A Python built against an old C library, as portable builds are, has no such function.
    if not hasattr(os, "copy_file_range"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    return os.copy_file_range(reader, writer, size, read_at, write_at)


def _stream(
    source: TensorEntry,
    reader: int,
    destinations: list[Destination],
    files: Files,
    advance: Advance,
) -> None:
    """Read a tensor once, some rows at a time, and write each destination's shard of them."""
    first = min(destination.part.rows[0] for destination in destinations)
    last = max(destination.part.rows[1] for destination in destinations)
    # A block of FP8 holds twice the values of a bf16 block, and values take the memory.
    block_bytes = BLOCK_BYTES // 2 if source.dtype == FP8 else BLOCK_BYTES
    for start, rows in read_blocks(source, reader, (first, last), block_bytes):
        if files.stop.is_set():
            return
        for destination in destinations:
            part, target = destination.part, destination.target
            low, high = max(start, part.rows[0]), min(start + len(rows), part.rows[1])
            if low >= high:
                continue
            shard = rows[low - start : high - start, part.columns[0] : part.columns[1]]
            values = scaled(shard, part, (low, high), target.dtype, files)
            values = _convert(values, destination.tensor)
            stride = values.shape[1] * values.dtype.itemsize
            files.write(target, (part.at + low - part.rows[0]) * stride, values)
            advance(values.nbytes)


def _convert(values: Array, tensor: TensorPlan) -> Array:
    """Add one where the rule says so and change the number format, rounding to nearest even."""
    wanted = ARRAY_DTYPES[tensor.dtype]
    if values.dtype == wanted and not tensor.plus_one:
        return values
    exact = values.astype(np.float32, copy=False)
    if tensor.plus_one:
        exact = exact + np.float32(1)
    with np.errstate(over="ignore"):
        rounded = exact.astype(wanted)
    lost = np.isinf(rounded)
    if lost.any() and (beyond := exact[lost & np.isfinite(exact)]).size:
        raise BadInputError(
            f"tensor {tensor.name} has a value of {beyond[0]:.4g}, which is beyond {wanted.name}"
            + ("; convert with --precision bf16" if wanted == np.float16 else "")
        )
    return rounded
