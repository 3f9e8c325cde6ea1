"""The parameters of a model's config.pbtxt, read when the model loads."""

from __future__ import annotations

import json
from collections.abc import Mapping


def parameter(args: Mapping[str, str], key: str, default: str | None = None) -> str:
    """Return a parameter of config.pbtxt; ValueError when it has neither it nor a default."""
    entry = json.loads(args["model_config"])["parameters"].get(key)
    if entry is not None:
        return str(entry["string_value"])
    if default is None:
        raise ValueError(f"config.pbtxt of {args['model_name']} lacks the parameter {key}")
    return default


def flag(args: Mapping[str, str], key: str, default: bool) -> bool:
    """Return a parameter that is true or false."""
    value = parameter(args, key, str(default)).lower()
    if value not in ("true", "false"):
        raise ValueError(f"the parameter {key} is {value!r}; expected true or false")
    return value == "true"
