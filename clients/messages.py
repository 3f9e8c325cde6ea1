"""What a client asks and what it gets, as values."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from minitron_trt.errors import UsageError

TENSORS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "text_input": "BYTES",
        "max_tokens": "INT32",
        "temperature": "FP32",
        "top_k": "INT32",
        "top_p": "FP32",
        "seed": "UINT64",
        "stop_words": "BYTES",
        "bad_words": "BYTES",
        "end_id": "INT32",
        "stream": "BOOL",
    }
)
"""The input tensors of `ensemble` and `tensorrt_llm_bls` that a request sets, with data types."""

OUTPUT: Final = "text_output"
_LISTS: Final = ("stop_words", "bad_words")
_REQUIRED: Final = ("text_input", "max_tokens", "stream")
_INTEGERS: Final[Mapping[str, tuple[int, int]]] = MappingProxyType(
    {"INT32": (-(2**31), 2**31 - 1), "UINT64": (0, 2**64 - 1)}
)
_LARGEST_FP32: Final = (2 - 2**-23) * 2.0**127


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One prompt and how to continue it; what is None is left to the server.

    Only what a tensor cannot hold is refused here: which values make sense, the server knows.
    """

    text_input: str
    max_tokens: int = 64
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop_words: Sequence[str] = ()
    bad_words: Sequence[str] = ()
    end_id: int | None = None
    stream: bool = True
    model: str = "ensemble"
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        for name in _LISTS:
            words = getattr(self, name)
            # A lone string would pass as a sequence of one-letter words.
            if isinstance(words, str) or not isinstance(words, Sequence):
                raise _nonsense(name, words, "a list of strings")
            object.__setattr__(self, name, tuple(words))
            for word in words:
                _check(name, "BYTES", word)
        for name in ("model", "request_id"):
            _check(name, "BYTES", getattr(self, name))
        if not self.model:
            raise _nonsense("model", self.model, "the name of a model")
        for name, datatype in TENSORS.items():
            value = getattr(self, name)
            if name not in _LISTS and (value is not None or name in _REQUIRED):
                _check(name, datatype, value)

    def inputs(self) -> dict[str, Any]:
        """Return the values that are set, by tensor name, in the order of TENSORS."""
        values = ((name, getattr(self, name)) for name in TENSORS)
        return {name: value for name, value in values if value is not None and value != ()}


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer; only the last piece is final, and its text may be empty."""

    text: str
    final: bool


def _check(name: str, datatype: str, value: Any) -> None:
    """UsageError unless a tensor of this data type can hold the value."""
    if datatype == "BYTES":
        if not isinstance(value, str):
            raise _nonsense(name, value, "a string")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise _nonsense(name, value, "text that UTF-8 can carry")
    elif datatype == "BOOL":
        if not isinstance(value, bool):
            raise _nonsense(name, value, "true or false")
    elif isinstance(value, bool):
        # Python counts True as the integer 1.
        raise _nonsense(name, value, "a number")
    elif datatype == "FP32":
        is_number = isinstance(value, (int, float)) and math.isfinite(value)
        if not is_number or abs(value) > _LARGEST_FP32:
            raise _nonsense(name, value, "a finite number")
    else:
        low, high = _INTEGERS[datatype]
        if not isinstance(value, int) or not low <= value <= high:
            raise _nonsense(name, value, f"a whole number from {low} to {high}")


def _nonsense(name: str, value: Any, expected: str) -> UsageError:
    return UsageError(f"{name} is {value!r}; expected {expected}")
