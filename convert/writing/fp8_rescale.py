"""FP8 numbers multiplied by a scale: codes of another scale, or numbers for a larger format."""

from __future__ import annotations

import os

import numpy as np

from minitron_trt.convert.conversion_plan import Part
from minitron_trt.convert.writing.blocks import Files, read_blocks, row_bytes
from minitron_trt.dtypes import FP8
from minitron_trt.quantization.number_formats import E4M3, Array, Codes, Floats, widen
from minitron_trt.tensorfile import TensorEntry


def scaled(values: Array, part: Part, rows: tuple[int, int], dtype: str, files: Files) -> Array:
    """Return some rows of a part multiplied by its scale; only FP8 has one.

    FP8 stays codes where the target has such, and becomes float32 otherwise.
    """
    if part.source.dtype != FP8:
        return values
    if isinstance(part.scale, TensorEntry):
        reader = files.descriptor(part.scale.path, os.O_RDONLY)
        whole = (rows[1] - rows[0]) * row_bytes(part.scale)
        ((_, scales),) = read_blocks(part.scale, reader, rows, whole)
        return E4M3.decode(values) * widen(scales)
    if dtype == FP8:
        return values if part.scale == 1.0 else recoded(values, part.scale)
    return _products(part.scale)[values]


def recoded(codes: Codes, factor: float) -> Codes:
    """Return the codes of the numbers times a factor; a code that is no number stays one."""
    numbers = _products(factor)
    table = np.where(np.isnan(numbers), np.arange(256), E4M3.encode(np.nan_to_num(numbers)))
    rescaled: Codes = table.astype(np.uint8)[codes]
    return rescaled


def _products(factor: float) -> Floats:
    """Return the number of every code times a factor: exact in float64, rounded once."""
    return (E4M3.values.astype(np.float64) * factor).astype(np.float32)
