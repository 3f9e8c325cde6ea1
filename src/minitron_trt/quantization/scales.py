"""Check the scales of a quantized checkpoint: a wrong one spoils a layer without any error."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from minitron_trt.errors import BadInputError
from minitron_trt.quantization.number_formats import ARRAY_DTYPES, E4M3, Array, widen
from minitron_trt.quantization.precisions import KV_SCALE, Precision
from minitron_trt.tensorfile import TensorEntry


def check_scales(precision: Precision, entries: Mapping[str, TensorEntry]) -> None:
    """Raise BadInputError for a scale that is zero, negative, NaN, infinite or subnormal."""
    suffixes = {stored.suffix for stored in precision.tensors if stored.is_scale}
    suffixes.add(KV_SCALE.suffix.rpartition(".")[2])
    for name, entry in entries.items():
        if name.rpartition(".")[2] in suffixes:
            check_scale(entry, read_scale(entry), "convert again")


def read_scale(entry: TensorEntry) -> Array:
    """Return the numbers of a scale tensor, flat; 1-byte floats as their codes."""
    kind = ARRAY_DTYPES[entry.dtype]
    count = entry.size_bytes // kind.itemsize
    with entry.path.open("rb") as file:
        return np.fromfile(file, kind, count, offset=entry.offset)


def check_scale(entry: TensorEntry, values: Array, advice: str) -> None:
    """Raise BadInputError, ending in the advice, where a number cannot be a scale."""
    if entry.dtype == "F8_E4M3":
        # Codes of positive numbers; the smallest ones are subnormal, and meant.
        wrong = (values == 0) | (values >= 0x7F)
        values = E4M3.values[values[wrong][:1]] if wrong.any() else values
    else:
        numbers = widen(values)
        # Written so that NaN is wrong.
        wrong = ~((numbers >= np.finfo(np.float32).tiny) & (numbers < np.inf))
        values = numbers[wrong][:1]
    if wrong.any():
        where = f" at {int(np.flatnonzero(wrong)[0])}" if wrong.size > 1 else ""
        raise BadInputError(
            f"{entry.path}: {entry.name} is {values[0]:.4g}{where}; a scale is a finite normal "
            f"number above 0: {advice}"
        )
