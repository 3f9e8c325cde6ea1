"""The number formats of stored tensors: safetensors' name, everybody else's, and the bytes of one.

numpy (with ml_dtypes), torch and TensorRT-LLM spell a dtype the same way, so one name serves all
three: `numpy.dtype(name)`, `getattr(torch, name)` and the `dtype` of a checkpoint's config.json.
This module imports none of them, since reading a header and printing help need none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class Dtype:
    """One number format."""

    stored_as: str  # safetensors' name
    name: str  # numpy's, torch's and TensorRT-LLM's
    size_bytes: int
    is_code: bool = False  # 1-byte floats, which this package computes with as their bit patterns


DTYPES: Final[Mapping[str, Dtype]] = MappingProxyType(
    {
        dtype.stored_as: dtype
        for dtype in (
            Dtype("F64", "float64", 8),
            Dtype("F32", "float32", 4),
            Dtype("F16", "float16", 2),
            Dtype("BF16", "bfloat16", 2),
            Dtype("F8_E4M3", "float8_e4m3fn", 1, is_code=True),
            Dtype("F8_E5M2", "float8_e5m2", 1, is_code=True),
            Dtype("I64", "int64", 8),
            Dtype("I32", "int32", 4),
            Dtype("I16", "int16", 2),
            Dtype("I8", "int8", 1),
            Dtype("U64", "uint64", 8),
            Dtype("U32", "uint32", 4),
            Dtype("U16", "uint16", 2),
            Dtype("U8", "uint8", 1),
            Dtype("BOOL", "bool", 1),
        )
    }
)
"""Every dtype of a safetensors file, by safetensors' name."""

UNQUANTIZED: Final = frozenset({"BF16", "F16", "F32"})
"""What weights are stored in that nothing has quantized."""
FP8: Final = "F8_E4M3"
"""What FP8 weights are stored in."""
