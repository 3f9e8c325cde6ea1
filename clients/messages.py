"""A request and the chunks of its answer, as values that know nothing of gRPC or HTTP."""

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
        "num_return_sequences": "INT32",
        "bad_words": "BYTES",
        "stop_words": "BYTES",
        "exclude_input_in_output": "BOOL",
        "end_id": "INT32",
        "pad_id": "INT32",
        "top_k": "INT32",
        "top_p": "FP32",
        "temperature": "FP32",
        "length_penalty": "FP32",
        "repetition_penalty": "FP32",
        "min_tokens": "INT32",
        "presence_penalty": "FP32",
        "frequency_penalty": "FP32",
        "seed": "UINT64",
        "return_log_probs": "BOOL",
        "return_context_logits": "BOOL",
        "return_generation_logits": "BOOL",
        "return_perf_metrics": "BOOL",
        "return_num_input_tokens": "BOOL",
        "return_num_output_tokens": "BOOL",
        "beam_width": "INT32",
        "stream": "BOOL",
        "embedding_bias_words": "BYTES",
        "embedding_bias_weights": "FP32",
        "lora_task_id": "UINT64",
        "guided_decoding_guide_type": "BYTES",
        "guided_decoding_guide": "BYTES",
        "apply_chat_template": "BOOL",
    }
)
"""The input tensors of `ensemble` and `tensorrt_llm_bls` that a request sets, with data types."""

TEXT: Final = "text_output"
FINISH_REASON: Final = "finish_reason"
SEQUENCE_INDEX: Final = "sequence_index"
RETURNED: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "return_log_probs": ("cum_log_probs", "output_log_probs"),
        "return_context_logits": ("context_logits",),
        "return_generation_logits": ("generation_logits",),
        "return_perf_metrics": (
            "arrival_time_ns",
            "first_scheduled_time_ns",
            "first_token_time_ns",
            "last_token_time_ns",
        ),
        "return_num_input_tokens": ("num_input_tokens",),
        "return_num_output_tokens": ("num_output_tokens",),
    }
)
"""The output tensors that come with an answer when a request asks for them."""

_WORDS: Final = ("bad_words", "stop_words", "embedding_bias_words")
_LISTS: Final = (*_WORDS, "embedding_bias_weights")
_REQUIRED: Final = ("text_input", "max_tokens", "stream")
_INTEGERS: Final[Mapping[str, tuple[int, int]]] = MappingProxyType(
    {"INT32": (-(2**31), 2**31 - 1), "UINT64": (0, 2**64 - 1)}
)
_LARGEST_FP32: Final = (2 - 2**-23) * 2.0**127


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One prompt and how to continue it; what is None is left to the server.

    Fields have the names of TensorRT-LLM's tensors. UsageError refuses what a tensor cannot hold;
    whether a value makes sense depends on the model, so the server judges that.
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
    pad_id: int | None = None
    min_tokens: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    num_return_sequences: int | None = None
    beam_width: int | None = None
    length_penalty: float | None = None
    embedding_bias_words: Sequence[str] = ()
    embedding_bias_weights: Sequence[float] = ()
    exclude_input_in_output: bool | None = None
    apply_chat_template: bool | None = None
    guided_decoding_guide_type: str | None = None
    guided_decoding_guide: str | None = None
    lora_task_id: int | None = None
    return_log_probs: bool | None = None
    return_context_logits: bool | None = None
    return_generation_logits: bool | None = None
    return_perf_metrics: bool | None = None
    return_num_input_tokens: bool | None = None
    return_num_output_tokens: bool | None = None
    # No tensor turns this output on, and NVIDIA's own text models do not have it.
    return_finish_reason: bool = False
    stream: bool = True
    model: str = "ensemble"
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        for name in _LISTS:
            values = getattr(self, name)
            kind = "strings" if name in _WORDS else "numbers"
            # A lone string would pass as a sequence of one-letter words.
            if isinstance(values, str) or not isinstance(values, Sequence):
                raise _nonsense(name, values, f"a list of {kind}")
            object.__setattr__(self, name, tuple(values))
            for value in values:
                _check(name, TENSORS[name], value)
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

    def outputs(self) -> tuple[str, ...]:
        """Return the output tensors that the request asks for."""
        requested = (names for option, names in RETURNED.items() if getattr(self, option))
        return (
            TEXT,
            *((FINISH_REASON,) if self.return_finish_reason else ()),
            *((SEQUENCE_INDEX,) if self.sequences > 1 else ()),
            *(name for names in requested for name in names),
        )

    @property
    def sequences(self) -> int:
        """Return how many sequences the answer has."""
        return max(self.num_return_sequences or 1, self.beam_width or 1)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of one sequence's text; the last of an answer is `final` and may be empty.

    `outputs` holds the values of every other tensor of the same response, flat.
    """

    text: str
    final: bool
    sequence: int = 0
    finish_reason: str | None = None
    outputs: Mapping[str, Sequence[Any]] = field(default_factory=dict)


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
