"""An opened GGUF file: its facts with typed access, and where each tensor's bytes lie.

A model may lie in several files; the first has the facts and opens the others, as in llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from minitron_trt.convert.gguf.header import TensorRecord, read_gguf_header
from minitron_trt.convert.gguf.part_names import PartName
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

_REMOVED_TYPES: Final[Mapping[int, tuple[str, str]]] = MappingProxyType(
    {
        4: ("Q4_2", "Q4_0"),
        5: ("Q4_3", "Q4_1"),
        31: ("Q4_0_4_4", "Q4_0"),
        32: ("Q4_0_4_8", "Q4_0"),
        33: ("Q4_0_8_8", "Q4_0"),
        36: ("IQ4_NL_4_4", "IQ4_NL"),
        37: ("IQ4_NL_4_8", "IQ4_NL"),
        38: ("IQ4_NL_8_8", "IQ4_NL"),
    }
)
"""Types that llama.cpp once had, by code: the name, and the type that has its place now."""
_DEFAULT_ALIGNMENT: Final = 32
_PART_COUNT, _PART_NUMBER, _TENSOR_COUNT = "split.count", "split.no", "split.tensors.count"


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: row-major shape, type by name, and bytes [offset, offset + size) of a file."""

    path: Path
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
    """The header of a GGUF file; of several parts the first one's facts and the tensors of all."""

    path: Path
    facts: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    @classmethod
    def open(cls, path: Path) -> GgufFile:
        """Read and check the header, and those of the other parts if the file is the first of some.

        BadInputError or UnsupportedError say what is wrong.
        """
        file = cls._open_one(path)
        # llama-gguf-split writes 0 into what it has merged.
        if file.integer(_PART_COUNT, 0) < 2:
            return file
        tensors = dict(file.tensors)
        for part in file._other_parts():
            if twice := tensors.keys() & part.tensors.keys():
                raise BadInputError(
                    f"{part.path} has tensor {min(twice)!r}, as a part before it does; download "
                    "the parts again"
                )
            tensors |= part.tensors
        expected = file.integer(_TENSOR_COUNT)
        if len(tensors) != expected:
            raise BadInputError(
                f"{path} and the parts beside it have {len(tensors)} tensors; {_TENSOR_COUNT} is "
                f"{expected}: download the parts again"
            )
        return cls(path, file.facts, tensors)

    @classmethod
    def _open_one(cls, path: Path) -> GgufFile:
        facts, records, end = read_gguf_header(path)
        alignment = facts.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise BadInputError(
                f"{path}: general.alignment is {alignment!r}; expected a power of 2"
            )
        base, size = -(-end // alignment) * alignment, path.stat().st_size
        tensors = {record.name: _tensor(path, base, size, record) for record in records}
        if len(tensors) < len(records):
            raise BadInputError(f"{path} names a tensor twice; download it again")
        _check_places(tensors.values(), base, alignment)
        return cls(path, facts, tensors)

    def _other_parts(self) -> Iterator[GgufFile]:
        """Open the parts after this one, which must be the first."""
        count, number = self.integer(_PART_COUNT), self.integer(_PART_NUMBER) + 1
        name = PartName.parse(self.path.name)
        if name is None or (name.number, name.count) != (number, count):
            raise BadInputError(
                f"{self.path} is part {number} of {count}, but its name does not end in "
                f"-{number:05d}-of-{count:05d}.gguf; parts find each other by their names, so "
                "give all of them those that llama-gguf-split wrote"
            )
        name.check_first(self.path)
        for at, other in enumerate(name.others(), start=1):
            path = self.path.with_name(other)
            if not path.exists():
                raise BadInputError(
                    f"{self.path} is the first of {count} parts, and {other} is not beside it; "
                    "download that, too"
                )
            part = self._open_one(path)
            if (part.integer(_PART_NUMBER), part.integer(_PART_COUNT)) != (at, count):
                raise BadInputError(
                    f"{path} says that it is part {part.integer(_PART_NUMBER) + 1} of "
                    f"{part.integer(_PART_COUNT)}; download it again"
                )
            yield part

    def string(self, key: str) -> str:
        """Return a text; BadInputError when the key is absent or holds something else."""
        value = self._value(key)
        if not isinstance(value, str):
            raise BadInputError(f"{self.path}: {key} is {value!r}; expected a text")
        return value

    def integer(self, key: str, default: int | None = None, *, layers: int | None = None) -> int:
        """Return a whole number, or the default where the key is absent.

        Where a number of layers is given it may be stated once for each of them; UnsupportedError
        when they differ.
        """
        value = self._value(key, default)
        if isinstance(value, list) and layers is not None:
            value = self._of_all_layers(key, value, layers)
        if isinstance(value, bool) or not isinstance(value, int):
            shown = "a list" if isinstance(value, list) else repr(value)
            raise BadInputError(f"{self.path}: {key} is {shown}; expected a whole number")
        return value

    def _of_all_layers(self, key: str, values: list[Any], layers: int) -> Any:
        if len(values) != layers or not values:
            raise BadInputError(
                f"{self.path}: {key} has {len(values)} values for {layers} layers; download it "
                "again"
            )
        if distinct := [value for value in values if value != values[0]]:
            raise UnsupportedError(
                f"{self.path}: {key} differs between layers, {values[0]!r} here and "
                f"{distinct[0]!r} there; only models whose layers are alike are read"
            )
        return values[0]

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
    row_bytes = shape[-1] // block * block_bytes
    tensor = GgufTensor(path, name, kind, shape, base + record.offset, row_bytes)
    if tensor.offset + tensor.size_bytes > size:
        raise BadInputError(
            f"{path} is {size} bytes but tensor {name!r} ends at "
            f"{tensor.offset + tensor.size_bytes}; it is truncated: download it again"
        )
    return tensor


def _check_places(tensors: Iterable[GgufTensor], base: int, alignment: int) -> None:
    """Raise BadInputError where two tensors share bytes, or one lies where llama.cpp reads none."""
    at = base
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        if tensor.offset < at:
            problem = "overlaps the one before it"
        elif (tensor.offset - base) % alignment:
            problem = f"begins at {tensor.offset - base}, no multiple of {alignment}"
        else:
            at = tensor.offset + tensor.size_bytes
            continue
        raise BadInputError(f"{tensor.path}: tensor {tensor.name!r} {problem}; download it again")


def _block(path: Path, name: str, code: int) -> tuple[str, int, int]:
    """Return the name of a tensor type, how many values a block has and its bytes."""
    if code in _REMOVED_TYPES:
        removed, successor = _REMOVED_TYPES[code]
        raise UnsupportedError(
            f"{path}: tensor {name!r} is {removed}, a type that llama.cpp has removed; take the "
            f"{successor} file of this model"
        )
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
