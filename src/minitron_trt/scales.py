"""Check the scales of a quantized checkpoint: a wrong one spoils a layer without any error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import ml_dtypes
import numpy as np

from minitron_trt.errors import BadInputError
from minitron_trt.number_formats import E4M3, Array, widen
from minitron_trt.precisions import KV_SCALE, Precision
from minitron_trt.tensorfile import TensorEntry

_NUMPY: Final = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16)}


def check_scales(precision: Precision, entries: Mapping[str, TensorEntry]) -> None:
    """Raise BadInputError for a scale that is zero, negative, NaN, infinite or subnormal."""
    suffixes = {stored.suffix for stored in precision.tensors if stored.is_scale}
    suffixes.add(KV_SCALE.suffix.rpartition(".")[2])
    for name, entry in entries.items():
        if name.rpartition(".")[2] in suffixes:
            _check(entry, _read(entry))


def _read(entry: TensorEntry) -> Array:
    kind = _NUMPY.get(entry.dtype, np.dtype(np.uint8))
    count = entry.size_bytes // kind.itemsize
    with entry.path.open("rb") as file:
        return np.fromfile(file, kind, count, offset=entry.offset)


def _check(entry: TensorEntry, values: Array) -> None:
    if entry.dtype == "F8_E4M3":
        # Codes of positive numbers; the smallest ones are subnormal, and meant.
        wrong = (values == 0) | (values >= 0x7F)
        values = E4M3.values[values[wrong][:1]] if wrong.any() else values
    else:
        wide = widen(values)
        # Written so that NaN is wrong.
        wrong = ~((wide >= np.finfo(np.float32).tiny) & (wide < np.inf))
        values = wide[wrong][:1]
    if wrong.any():
        where = f" at {int(np.flatnonzero(wrong)[0])}" if wrong.size > 1 else ""
        raise BadInputError(
            f"{entry.path}: {entry.name} is {values[0]:.4g}{where}; a scale is a finite normal "
            "number above 0: convert again"
        )
