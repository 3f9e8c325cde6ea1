"""The header of a GGUF file as it lies on the disk: facts by key, then the tensors' records.

Versions 2 and 3, little-endian: the magic, a version, two counts, the facts as typed key-value
pairs, and each tensor's name, shape, type and offset. The `gguf` package has a reader too, which
raises whatever numpy raises on a damaged file and builds several objects for each of the 256,000
tokens of a vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Final

import numpy as np

from minitron_trt.errors import BadInputError, UnsupportedError
from minitron_trt.tensorfile import LFS_POINTER

MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_BOOL, _STRING, _ARRAY = 7, 8, 9
# By the codes of gguf_type in ggml's gguf.h.
_SCALARS: Final[Mapping[int, np.dtype[Any]]] = MappingProxyType(
    {
        code: np.dtype(name)
        for code, name in {
            **{0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4"},
            **{_BOOL: "?", 10: "<u8", 11: "<i8", 12: "<f8"},
        }.items()
    }
)
_AXES_AT_MOST = 4
# What no model has, and a damaged or sparse file may claim: reading it would never end.
_VALUES_AT_MOST: Final = 1 << 24
_TEXT_BYTES_AT_MOST: Final = 1 << 28


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A tensor as the header lists it; the shape is row-major, the offset within the data."""

    name: str
    shape: tuple[int, ...]
    code: int
    offset: int


def read_gguf_header(path: Path) -> tuple[dict[str, Any], list[TensorRecord], int]:
    """Return the facts, the tensors' records and where the header ends.

    BadInputError or UnsupportedError say what is wrong with the file.
    """
    if not path.is_file():
        # Opening a pipe would wait for a writer.
        raise BadInputError(f"{path} is not a regular file; expected a GGUF file")
    if not path.stat().st_size:
        # So look those of /proc that wait for something to happen, too.
        raise BadInputError(f"{path} is empty; download it again")
    with path.open("rb") as file:
        _check_start(path, file.read(len(LFS_POINTER)))
        reader = _HeaderReader(path, file, at=8)
        tensor_count, fact_count = reader.integer(8), reader.integer(8)
        facts: dict[str, Any] = {}
        for _ in range(fact_count):
            key = reader.text()
            if not key or key in facts:
                problem = f"states {key} twice" if key else "has a fact without a name"
                raise BadInputError(f"{path} {problem}; download it again")
            facts[key] = reader.value(reader.integer(4))
        records = [_tensor_record(reader) for _ in range(tensor_count)]
        return facts, records, reader.at


def _check_start(path: Path, start: bytes) -> None:
    if start == LFS_POINTER:
        raise BadInputError(f"{path} is a git-LFS pointer, not weights; run: git lfs pull")
    if not start.startswith(MAGIC):
        raise BadInputError(f"{path} is not a GGUF file; it begins with {start[:4]!r}")
    version = int.from_bytes(start[4:8], "little")
    if version in _VERSIONS:
        return
    # The 2 or 3 of a big-endian file, read from the wrong end.
    if version and not version & 0xFFFF:
        raise UnsupportedError(f"{path} is a big-endian GGUF file; get the little-endian one")
    raise UnsupportedError(
        f"{path} is GGUF version {version}; versions 2 and 3 are read: convert the model again "
        "with llama.cpp"
    )


def _tensor_record(reader: _HeaderReader) -> TensorRecord:
    name, axes = reader.text(), reader.integer(4)
    if not 1 <= axes <= _AXES_AT_MOST:
        raise BadInputError(
            f"{reader.path}: tensor {name!r} has {axes} axes; expected 1 to {_AXES_AT_MOST}"
        )
    shape = tuple(reader.integer(8) for _ in range(axes))[::-1]
    return TensorRecord(name, shape, reader.integer(4), reader.integer(8))


class _HeaderReader:
    """A file read in order, with an error instead of a short read."""

    def __init__(self, path: Path, file: BinaryIO, at: int) -> None:
        self.path, self.at = path, at
        self._file, self._size = file, path.stat().st_size
        file.seek(at)

    def take(self, size: int) -> bytes:
        """Return the next bytes."""
        # Asked before the read, which would make room for whatever a damaged length claims.
        if size > self._size - self.at:
            raise BadInputError(
                f"{self.path} ends within its header ({self._size} bytes); download it again"
            )
        self.at += size
        return self._file.read(size)

    def integer(self, size: int) -> int:
        """Return the next whole number of so many bytes."""
        return int.from_bytes(self.take(size), "little")

    def text(self) -> str:
        """Return the next text."""
        size = self.integer(8)
        if size > _TEXT_BYTES_AT_MOST:
            raise BadInputError(
                f"{self.path} has a text of {size} bytes; expected at most {_TEXT_BYTES_AT_MOST}: "
                "download it again"
            )
        blob = self.take(size)
        try:
            return blob.decode()
        except UnicodeDecodeError as error:
            raise BadInputError(
                f"{self.path} has a text that is not UTF-8 ({error.reason}); download it again"
            ) from error

    def value(self, code: int) -> Any:
        """Return the next value of a type: a number, a text, true or false, or a list of one."""
        if code == _STRING:
            return self.text()
        if code != _ARRAY:
            return self._scalars(code, 1)[0]
        code, count = self.integer(4), self.integer(8)
        if count > _VALUES_AT_MOST:
            raise BadInputError(
                f"{self.path} has a list of {count} values; expected at most {_VALUES_AT_MOST}: "
                "download it again"
            )
        if code == _STRING:
            return [self.text() for _ in range(count)]
        return self._scalars(code, count)

    def _scalars(self, code: int, count: int) -> list[Any]:
        if code not in _SCALARS:
            raise BadInputError(
                f"{self.path} has a value of type {code}, which is not known; download it again"
            )
        dtype = _SCALARS[code]
        return list(np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist())
