"""Values of a config.json, checked where they are read; errors name the key and what it holds."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from minitron_trt.errors import BadInputError


def finite_number(value: Any, key: str) -> float:
    """Return a value that is a finite number; the key is what an error calls it."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # Written so that NaN fails, and a whole number too large for a float does not overflow.
    if not number or not abs(value) <= sys.float_info.max:
        raise BadInputError(f"config.json: {key} is {value!r}; expected a finite number")
    return value  # type: ignore[no-any-return]


def nested_object(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the object under a key; an absent one is empty."""
    value = record.get(key) or {}
    if not isinstance(value, Mapping):
        raise BadInputError(f"config.json: {key} is {value!r}; expected an object")
    return value
