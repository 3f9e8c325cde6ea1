"""An opened GGUF file: its facts with typed access, and where each tensor's bytes lie."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from minitron_trt.convert.gguf.header import TensorRecord, read_gguf_header
from minitron_trt.errors import BadInputError, MissingExtraError, UnsupportedError

GGUF_TYPES: Final = (
    "F32",
    "F16",
    "BF16",
    "Q8_0",
    "Q6_K",
    "Q5_0",
    "Q5_1",
    "Q5_K",
    "Q4_0",
    "Q4_1",
    "Q4_K",
    "Q3_K",
    "Q2_K",
    "IQ4_NL",
    "IQ4_XS",
    "IQ3_S",
    "IQ3_XXS",
    "IQ2_S",
    "IQ2_XS",
    "IQ2_XXS",
    "IQ1_S",
    "IQ1_M",
)
"""The tensor types that are read. The gguf package knows their blocks and dequantizes them, so a
new type is one more name here; a test runs every one of them through it."""


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: row-major shape, type by name, and its bytes [offset, offset + size)."""

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    row_bytes: int

    @property
    def rows(self) -> int:
        """Return how many rows lie one after the other; a vector is one row."""
        return math.prod(self.shape[:-1])

    @property
    def size_bytes(self) -> int:
        """Return how many bytes the tensor takes in the file."""
        return self.rows * self.row_bytes


@dataclass(frozen=True, slots=True)
class GgufFile:
    """The header of a GGUF file."""

    path: Path
    facts: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    @classmethod
    def open(cls, path: Path) -> GgufFile:
        """Read and check the header; BadInputError or UnsupportedError say what is wrong."""
        facts, records, end = read_gguf_header(path)
        alignment = facts.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise BadInputError(f"{path}: general.alignment is {alignment!r}; expected a size")
        base, size = -(-end // alignment) * alignment, path.stat().st_size
        tensors = {record.name: _tensor(path, base, size, record) for record in records}
        if len(tensors) < len(records):
            raise BadInputError(f"{path} names a tensor twice; download it again")
        return cls(path, facts, tensors)

    def string(self, key: str) -> str:
        """Return a text; BadInputError when the key is absent or holds something else."""
        value = self._value(key)
        if not isinstance(value, str):
            raise BadInputError(f"{self.path}: {key} is {value!r}; expected a text")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a whole number, or the default where the key is absent."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            shown = "a list" if isinstance(value, list) else repr(value)
            raise UnsupportedError(
                f"{self.path}: {key} is {shown}; expected one whole number for all layers"
            )
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number, or the default where the key is absent."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise BadInputError(f"{self.path}: {key} is {value!r}; expected a number")
        if not math.isfinite(value):
            raise BadInputError(f"{self.path}: {key} is {value}; expected a finite number")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false, or the default where the key is absent."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise BadInputError(f"{self.path}: {key} is {value!r}; expected true or false")
        return value

    def array(self, key: str) -> list[Any]:
        """Return a list; BadInputError when the key is absent or holds something else."""
        value = self._value(key)
        if not isinstance(value, list):
            raise BadInputError(f"{self.path}: {key} is {value!r}; expected a list")
        return value

    def _value(self, key: str, default: Any = None) -> Any:
        value = self.facts.get(key, default)
        if value is None:
            raise BadInputError(f"{self.path} has no {key}; it is no complete model")
        return value


def _tensor(path: Path, base: int, size: int, record: TensorRecord) -> GgufTensor:
    name, shape = record.name, record.shape
    kind, block, block_bytes = _block(path, name, record.code)
    if min(shape) < 1 or shape[-1] % block:
        raise BadInputError(
            f"{path}: tensor {name!r} is {list(shape)}; {kind} needs rows of a multiple of {block}"
        )
    tensor = GgufTensor(name, kind, shape, base + record.offset, shape[-1] // block * block_bytes)
    if tensor.offset + tensor.size_bytes > size:
        raise BadInputError(
            f"{path} is {size} bytes but tensor {name!r} ends at "
            f"{tensor.offset + tensor.size_bytes}; it is truncated: download it again"
        )
    return tensor


def _block(path: Path, name: str, code: int) -> tuple[str, int, int]:
    """Return the name of a tensor type, how many values a block has and its bytes."""
    gguf = gguf_package(path)
    try:
        kind = gguf.GGMLQuantizationType(code)
    except ValueError:
        raise UnsupportedError(
            f"{path}: tensor {name!r} has type {code}, which is not known; upgrade "
            "the gguf package, or download the file again"
        ) from None
    if kind.name not in GGUF_TYPES:
        raise UnsupportedError(
            f"{path}: tensor {name!r} is {kind.name}; read are {', '.join(GGUF_TYPES)}"
        )
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    return kind.name, block, block_bytes


def gguf_package(path: Path) -> Any:
    """Return the `gguf` package; MissingExtraError says how to install it."""
    try:
        import gguf
    except ImportError:
        raise MissingExtraError("gguf", "quantize", f"reading {path.name}") from None
    return gguf
