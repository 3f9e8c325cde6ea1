"""Carry out a plan: tensors pass through bounded buffers from their files to the ranks'."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from minitron_trt.console import Advance
from minitron_trt.convert.conversion_memory import workers
from minitron_trt.convert.conversion_plan import (
    BLOCK_BYTES,
    ConversionPlan,
    Rounding,
    TensorPlan,
)
from minitron_trt.convert.finite_values import all_finite
from minitron_trt.convert.writing.blocks import (
    Destination,
    Files,
    read_blocks,
)
from minitron_trt.convert.writing.fp8_rescale import scaled
from minitron_trt.convert.writing.quantize import (
    Calibration,
    quantize,
    with_weight_amax,
    write_constants,
)
from minitron_trt.convert.writing.rounding import RoundingCount
from minitron_trt.dtypes import FP8
from minitron_trt.errors import BadInputError
from minitron_trt.quantization.number_formats import ARRAY_DTYPES, Array
from minitron_trt.quantization.precisions import Precision
from minitron_trt.tensorfile import TensorEntry, lay_out

NOT_CALIBRATED: Final = Calibration()
# What the system says where room cannot be reserved: there the file gets its length alone, and a
# full disk is met during the work.
_NO_RESERVING = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP})


def write_ranks(
    plan: ConversionPlan,
    folder: Path,
    advance: Advance,
    calibration: Calibration = NOT_CALIBRATED,
) -> tuple[Rounding, ...]:
    """Write every rank file of the plan; `advance` hears of the bytes written.

    Returns what changing number formats has lost. BadInputError when a source ends early, or a
    value is no finite number or does not fit the precision.
    """
    # By source: each tensor is read once for all ranks and scales that are made of it.
    jobs: dict[TensorEntry, list[Destination]] = {}
    placed: list[tuple[TensorPlan, TensorEntry]] = []
    calibration = with_weight_amax(plan, calibration)
    roundings = RoundingCount()
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
            work = _Work(plan.precision, calibration, files, advance, roundings)
            tasks = [pool.submit(work.move, *job) for job in jobs.items()]
            for task in tasks:
                task.result()
        except BaseException:
            # Workers look at it between two blocks; else the pool would wait for whole tensors.
            files.stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return roundings.roundings


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


@dataclass(frozen=True, slots=True)
class _Work:
    """What the workers share while they move tensors."""

    precision: Precision
    calibration: Calibration
    files: Files
    advance: Advance
    roundings: RoundingCount

    def move(self, source: TensorEntry, destinations: list[Destination]) -> None:
        """Write one source tensor to every destination, quantized or as it is."""
        linear = destinations[0].tensor.linear
        if linear and self.precision.scheme:
            ranges = self.calibration.linears[linear]
            scheme = self.precision.scheme
            quantize(source, destinations, scheme, ranges, self.files, self.advance)
        else:
            self._stream(source, destinations)

    def _stream(self, source: TensorEntry, destinations: list[Destination]) -> None:
        """Read a tensor once, some rows at a time, and write each destination's shard of them.

        Rows are looked at and written while they are in the processor's cache, which takes no
        longer than to let the kernel copy them unseen.
        """
        reader = self.files.descriptor(source.path, os.O_RDONLY)
        first = min(destination.part.rows[0] for destination in destinations)
        last = max(destination.part.rows[1] for destination in destinations)
        # A block of FP8 holds twice the values of a bf16 block, and values take the memory.
        block_bytes = BLOCK_BYTES // 2 if source.dtype == FP8 else BLOCK_BYTES
        # All that is made of a tensor is made alike; its destinations differ in what they take.
        alike = destinations[0]
        for start, rows in read_blocks(source, reader, (first, last), block_bytes):
            if self.files.stop.is_set():
                return
            extent = (start, start + len(rows))
            values = scaled(rows, alike.part, extent, alike.target.dtype, self.files)
            values = self._convert(values, source, alike.tensor)
            for destination in destinations:
                part, target = destination.part, destination.target
                low, high = max(start, part.rows[0]), min(start + len(rows), part.rows[1])
                if low < high:
                    shard = values[low - start : high - start, slice(*part.columns)]
                    stride = shard.shape[1] * shard.dtype.itemsize
                    self.files.write(target, (part.at + low - part.rows[0]) * stride, shard)
                    self.advance(shard.nbytes)

    def _convert(self, values: Array, source: TensorEntry, tensor: TensorPlan) -> Array:
        """Add one where the rule says so and change the number format, rounding to nearest even."""
        wanted = ARRAY_DTYPES[tensor.dtype]
        if values.dtype == wanted and not tensor.plus_one:
            return values
        # float32 has every number of the sources' formats. Adding one in it and rounding to bf16
        # gives what ModelOpt's bf16 addition gives.
        exact = values.astype(np.float32, copy=False)
        if tensor.plus_one:
            exact = exact + np.float32(1)
        with np.errstate(over="ignore"):
            rounded = exact.astype(wanted)
        if not all_finite(rounded):
            lost = np.isinf(rounded)
            raise BadInputError(
                f"tensor {tensor.name} has a value of {exact[lost][0]:.4g}, which is beyond "
                f"{wanted.name}"
                + ("; convert with --precision bf16" if wanted == np.float16 else "")
            )
        self.roundings.add(source, tensor.dtype, exact, rounded)
        return rounded
