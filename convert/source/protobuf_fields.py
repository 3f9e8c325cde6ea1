"""The fields of a protobuf message, without the message's definition."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def protobuf_fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each field: whole numbers, or bytes.

    IndexError or ValueError where the data is no message.
    """
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        # Wire types: 0 is a varint, 1 and 5 are eight and four bytes, 2 is a length and so many
        # bytes; 3 and 4, groups, are in no file that is read here.
        kind, length = tag & 7, {1: 8, 5: 4}.get(tag & 7)
        if kind == 0:
            value, at = _varint(data, at)
            # A negative number is the 64 bits of its two's complement.
            yield tag >> 3, value - (1 << 64) if value >> 63 else value
            continue
        if kind == 2:
            length, at = _varint(data, at)
        if length is None or at + length > len(data):
            raise ValueError("a field of an unknown kind, or beyond the end")
        yield tag >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    # Ten bytes of seven bits each have room for 64.
    while shift < 70:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
    raise ValueError("a number without an end")
