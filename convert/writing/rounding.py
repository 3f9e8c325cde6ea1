"""What storing weights in another format has changed, gathered while they pass through memory."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np

from minitron_trt.convert.conversion_plan import Rounding
from minitron_trt.dtypes import DTYPES, UNQUANTIZED
from minitron_trt.quantization.number_formats import Array, Floats
from minitron_trt.tensorfile import TensorEntry


class RoundingCount:
    """The roundings of a conversion, whose workers add to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_formats: dict[tuple[str, str], Rounding] = {}

    def add(self, source: TensorEntry, stored_as: str, exact: Floats, rounded: Array) -> None:
        """Compare some values of a tensor with what is stored of them."""
        if source.dtype == stored_as or source.dtype not in UNQUANTIZED:
            return
        # In place: these blocks are as large as the conversion's own.
        shares = rounded.astype(np.float32)
        with np.errstate(all="ignore"):
            np.divide(shares, exact, out=shares)
        shares -= 1
        np.abs(shares, out=shares)
        # 0 / 0 is NaN, and no change.
        changed = np.count_nonzero(shares > 0)
        largest = float(np.fmax.reduce(shares, axis=None))
        zeroed = np.count_nonzero(shares == 1) if largest >= 1 else 0
        formats = (DTYPES[source.dtype].name, DTYPES[stored_as].name)
        with self._lock:
            before = self._by_formats.get(formats, Rounding(*formats))
            after = replace(
                before,
                values=before.values + exact.size,
                changed=before.changed + changed,
                zeroed=before.zeroed + zeroed,
            )
            # Of equals the first by name, whichever worker comes first.
            if changed and (-largest, source.name) < (-before.largest, before.largest_in):
                after = replace(after, largest=largest, largest_in=source.name)
            self._by_formats[formats] = after

    @property
    def roundings(self) -> tuple[Rounding, ...]:
        """Return what was compared, by the formats of the source."""
        return tuple(rounding for _, rounding in sorted(self._by_formats.items()))
