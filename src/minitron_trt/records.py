"""JSON files that others may have damaged, read into typed records by one reader.

msgspec decodes and checks in one pass: no number passes for another type or lies out of its range,
and NaN, which JSON does not have, is refused. Keys that a record does not name are ignored, since
newer versions and other programs add theirs.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta

from minitron_trt.errors import BadInputError

T = TypeVar("T")

Bytes = Annotated[int, Meta(ge=0, lt=2**62)]
"""The size of a file."""
Size = Annotated[int, Meta(ge=1, lt=2**31)]
"""A size that C++ keeps in 32 bits, as TensorRT-LLM does all of a model's."""
OptionalSize = Annotated[int, Meta(ge=0, lt=2**31)] | None
"""A size that a file may leave open, by null or 0."""

_LIMIT_BYTES: Final = 64_000_000


def read_record(path: Path, kind: type[T]) -> T:
    """Return the object in a JSON file; BadInputError when the file cannot be read.

    ValueError, whose text is one short line, when the file holds something else.
    """
    data = read_regular(path)
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, BadInputError) as error:
        # The other is of a record's own rules.
        raise ValueError(str(error)) from error
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8") from error
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def check_record(record: Any, kind: type[T]) -> T:
    """Return what JSON held as a record; ValueError, in one short line, when it is none."""
    try:
        return msgspec.convert(record, type=kind)
    except (msgspec.MsgspecError, BadInputError) as error:
        raise ValueError(str(error)) from error


def read_regular(path: Path) -> bytes:
    """Return the bytes of a small file; BadInputError when it is too large, or a pipe or device."""
    try:
        # A pipe that nobody writes to would keep an ordinary open waiting.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            state = os.fstat(descriptor)
            if not stat.S_ISREG(state.st_mode):
                raise BadInputError(f"{path} is not a regular file")
            if state.st_size > _LIMIT_BYTES:
                raise BadInputError(
                    f"{path} is {state.st_size} bytes; expected at most {_LIMIT_BYTES}"
                )
            return file.read(_LIMIT_BYTES)
    except OSError as error:
        raise BadInputError(f"{path} cannot be read: {error.strerror}") from error


def read_text(path: Path) -> str:
    """Return the text of a small file; BadInputError when it is no UTF-8 or cannot be read."""
    try:
        return read_regular(path).decode()
    except UnicodeDecodeError as error:
        raise BadInputError(
            f"{path} is not UTF-8 ({error.reason} at byte {error.start})"
        ) from error
