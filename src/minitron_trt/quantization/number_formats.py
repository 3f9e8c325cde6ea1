"""Floating-point formats of 8 and 4 bits in numpy, fast and exact: to nearest, ties to even.

Adding 2**(e + 23 - m) to a positive float32 a in [2**e, 2**(e+1)) leaves no room for more than m
bits of its fraction: the processor rounds them off, to nearest even, and the low bits of the sum
are the number of steps of 2**(e - m) in a. That count and the exponent make the code of any format
with m fraction bits; below the smallest exponent e stays put, which is what subnormals are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from minitron_trt.dtypes import DTYPES

Array: TypeAlias = NDArray[Any]
Floats: TypeAlias = NDArray[np.float32]
Codes: TypeAlias = NDArray[np.uint8]

# ml_dtypes teaches numpy the names of the formats that it lacks.
NUMPY_DTYPES: Final[Mapping[str, np.dtype[Any]]] = MappingProxyType(
    {dtype.stored_as: np.dtype(dtype.name) for dtype in DTYPES.values()}
)
"""What numpy calls the dtypes of safetensors files."""
ARRAY_DTYPES: Final[Mapping[str, np.dtype[Any]]] = MappingProxyType(
    {
        name: np.dtype(np.uint8) if DTYPES[name].is_code else dtype
        for name, dtype in NUMPY_DTYPES.items()
    }
)
"""The same for arrays that are computed with, which hold 1-byte floats as their codes."""

_RUN = 1 << 16  # values handled at a time, so that the steps between stay in the cache
_EXPONENT = np.uint32(0x7F800000)


@dataclass(frozen=True)
class FloatFormat:
    """A float of one sign bit, some exponent bits and `fraction` bits, without infinities."""

    name: str
    fraction: int
    smallest: int  # the exponent of the smallest normal number
    largest: float
    sign: int  # the bit that makes a code negative

    def encode(self, values: Floats) -> Codes:
        """Return the codes of the nearest numbers; what lies beyond the largest becomes it."""
        flat = np.ascontiguousarray(values).reshape(-1)
        codes = np.empty(flat.size, np.uint8)
        steps = np.empty(min(flat.size, _RUN), np.float32)
        powers = np.empty(steps.size, np.uint32)
        for start in range(0, flat.size, _RUN):
            part, out = flat[start : start + _RUN], codes[start : start + _RUN]
            self._encode_run(part, out, steps[: part.size], powers[: part.size])
        return codes.reshape(values.shape)

    def _encode_run(
        self, values: Floats, codes: Codes, steps: Floats, powers: NDArray[np.uint32]
    ) -> None:
        np.absolute(values, out=steps)
        np.minimum(steps, np.float32(self.largest), out=steps)
        bits = steps.view(np.uint32)
        np.bitwise_and(bits, _EXPONENT, out=powers)
        np.maximum(powers, np.uint32((self.smallest + 127) << 23), out=powers)
        powers += np.uint32((23 - self.fraction) << 23)
        steps += powers.view(np.float32)
        # Each power of two above the smallest is 2**fraction codes further on.
        powers >>= np.uint32(23 - self.fraction)
        bits += powers
        np.copyto(codes, bits, casting="unsafe")
        base = (self.smallest + 127 + 23 - self.fraction) << self.fraction
        codes -= np.uint8(base & 0xFF)
        codes |= np.signbit(values).view(np.uint8) * np.uint8(self.sign)

    @cached_property
    def values(self) -> Floats:
        """The number of every code; codes beyond the format's own hold NaN."""
        code = np.arange(2 * self.sign)
        exponent, count = (code % self.sign) >> self.fraction, code % (1 << self.fraction)
        normal = exponent > 0
        steps = np.where(normal, count + (1 << self.fraction), count)
        size = np.ldexp(steps, np.where(normal, exponent - 1, 0) + self.smallest - self.fraction)
        size = np.where(size > self.largest, np.nan, size)
        return np.where(code >= self.sign, -size, size).astype(np.float32)

    def decode(self, codes: Codes) -> Floats:
        """Return the numbers of codes."""
        return self.values[codes]


E4M3: Final = FloatFormat("e4m3", fraction=3, smallest=-6, largest=448.0, sign=0x80)
E2M1: Final = FloatFormat("e2m1", fraction=1, smallest=0, largest=6.0, sign=0x08)


EVERY_BFLOAT16: Final[Array] = np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16)
"""All numbers of bfloat16, in the order of their bits: what a table by these bits is made from."""


def look_up(table: Codes, index: Array) -> Codes:
    """Return table[index] for whole numbers, some times faster than numpy; none may be beyond."""
    flat, codes = index.reshape(-1), np.empty(index.size, np.uint8)
    for start in range(0, flat.size, _RUN):
        # "clip" for its speed: "raise" looks at every index and copies the result.
        table.take(flat[start : start + _RUN], out=codes[start : start + _RUN], mode="clip")
    return codes.reshape(index.shape)


def widen(values: Array) -> Floats:
    """Return bfloat16 (or any other) numbers as float32."""
    if values.dtype.itemsize == 2 and values.dtype.name == "bfloat16":
        return (values.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(np.float32, copy=False)


def pack_columns(codes: Codes) -> Codes:
    """Join neighbouring columns of 4-bit codes: even ones in the low half of a byte."""
    pairs = np.ascontiguousarray(codes).view("<u2")
    packed: Codes = (pairs | (pairs >> np.uint16(4))).astype(np.uint8)
    return packed


def unpack_columns(packed: Codes) -> Codes:
    """Undo `pack_columns`."""
    pairs: Codes = np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1)
    return pairs.reshape(len(packed), -1)


def pack_rows(values: NDArray[np.int8]) -> NDArray[np.int8]:
    """Join neighbouring rows of signed 4-bit numbers: even ones in the low half of a byte."""
    packed: NDArray[np.int8] = (values[0::2] & np.int8(15)) | (values[1::2] << np.int8(4))
    return packed


def unpack_rows(packed: NDArray[np.int8]) -> NDArray[np.int8]:
    """Undo `pack_rows`."""
    # A shift to the right keeps the sign.
    low: NDArray[np.int8] = (packed << np.int8(4)) >> np.int8(4)
    pairs: NDArray[np.int8] = np.stack([low, packed >> np.int8(4)], axis=1)
    return pairs.reshape(-1, packed.shape[1])
