"""Weights that are no finite numbers, found by their bits at the speed of memory.

The bits of a float, read as a whole number, grow with its magnitude; NaN and the infinities come
last. So the largest of an array, read once as signed and once as unsigned numbers, tells of either
sign.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import ml_dtypes
import numpy as np

from minitron_trt.errors import BadInputError
from minitron_trt.quantization.number_formats import E4M3, Array

# The smallest bits that are no finite number, of a positive one; FP8 comes as its codes.
_NOT_FINITE: Final[Mapping[np.dtype[Any], int]] = MappingProxyType(
    {
        np.dtype(np.float32): 0x7F800000,
        np.dtype(np.float16): 0x7C00,
        np.dtype(ml_dtypes.bfloat16): 0x7F80,
        np.dtype(np.uint8): 0x7F,
    }
)


def all_finite(values: Array) -> bool:
    """Return whether no value is NaN or infinite."""
    size, least = values.dtype.itemsize, _NOT_FINITE[values.dtype]
    sign = 1 << (8 * size - 1)
    signed, unsigned = values.view(f"i{size}"), values.view(f"u{size}")
    return bool(signed.max() < least and unsigned.max() < sign | least)


def check_finite(values: Array, name: str, first_row: int = 0) -> None:
    """Raise BadInputError when a weight is NaN or infinite; it names the tensor and the place.

    `values` are rows of a tensor, [rows, columns]; `first_row` is which of its rows they begin at.
    """
    if all_finite(values):
        return
    numbers = E4M3.values[values] if values.dtype == np.uint8 else values.astype(np.float32)
    row, *column = np.argwhere(~np.isfinite(numbers))[0].tolist()
    place = [first_row + row, *(column if values.shape[-1] > 1 else ())]
    raise BadInputError(
        f"tensor {name} is {numbers[row, *column]} at {place}; expected finite numbers only: "
        "download the model again, or save it from an earlier step of its training"
    )
