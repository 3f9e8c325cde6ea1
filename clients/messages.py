"""A request and the chunks of its answer, as values that know nothing of gRPC or HTTP."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from minitron_trt.clients.endpoint import check_headers
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
        "num_draft_tokens": "INT32",
        "guided_decoding_guide_type": "BYTES",
        "guided_decoding_guide": "BYTES",
        "apply_chat_template": "BOOL",
    }
)
"""The input tensors of `ensemble` and `tensorrt_llm_bls` that a request sets, with data types."""

_OF_LLM_API: Final = "sampling_param_"
ALIASES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        **{name: (_OF_LLM_API + name,) for name in TENSORS},
        "stream": ("streaming",),
        "max_tokens": ("request_output_len", "sampling_param_max_tokens"),
        "top_k": ("runtime_top_k", "sampling_param_top_k"),
        "top_p": ("runtime_top_p", "sampling_param_top_p"),
        "length_penalty": ("len_penalty",),
        "seed": ("random_seed", "sampling_param_seed"),
        "stop_words": ("sampling_param_stop",),
        "exclude_input_in_output": ("sampling_param_exclude_input_from_output",),
    }
)
"""What the same inputs are called elsewhere: by `tensorrt_llm`, older versions, the LLM API."""

INPUT_IDS: Final = "input_ids"
INPUT_LENGTHS: Final = "input_lengths"
INPUT_NAMES: Final = frozenset(
    {*TENSORS, INPUT_IDS, INPUT_LENGTHS, *(name for names in ALIASES.values() for name in names)}
)
"""Every input that a request may set, under every name."""

TEXT: Final = "text_output"
OUTPUT_IDS: Final = "output_ids"
SEQUENCE_LENGTH: Final = "sequence_length"
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

LOGITS: Final = ("context_logits", "generation_logits")
COUNTS: Final = ("return_num_input_tokens", "return_num_output_tokens")

_WORDS: Final = ("bad_words", "stop_words", "embedding_bias_words")
_LISTS: Final = (*_WORDS, "embedding_bias_weights")
# Set in every request, so that None, "left to the server", is no value of theirs.
_REQUIRED: Final = ("text_input", "stream")
_INTEGERS: Final[Mapping[str, tuple[int, int]]] = MappingProxyType(
    {"INT32": (-(2**31), 2**31 - 1), "UINT64": (0, 2**64 - 1)}
)
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_LARGEST_FP32: Final = (2 - 2**-23) * 2.0**127


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One prompt and how to continue it; what is None is left to the server.

    Fields have the names of TensorRT-LLM's tensors. The prompt is a text, or for the model
    `tensorrt_llm` token ids. UsageError refuses what a tensor cannot hold; whether a value makes
    sense depends on the model, so the server judges that. `headers` go with this request alone,
    `traceparent` among them.
    """

    text_input: str = ""
    input_ids: Sequence[int] = ()
    max_tokens: int | None = None
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
    num_draft_tokens: int | None = None
    return_log_probs: bool | None = None
    return_context_logits: bool | None = None
    return_generation_logits: bool | None = None
    return_perf_metrics: bool | None = None
    return_num_input_tokens: bool | None = None
    return_num_output_tokens: bool | None = None
    # For a completion's counts: asked for where the model can count, and left out elsewhere.
    count_tokens: bool = field(default=False, compare=False)
    stream: bool = True
    model: str = "ensemble"
    headers: Mapping[str, str] = field(default_factory=dict)
    # As long as a UUID, whose module would be loaded for that alone.
    request_id: str = field(default_factory=lambda: os.urandom(16).hex())

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
        self._check_ids()
        check_headers(self.headers)
        for name in ("model", "request_id"):
            _check(name, "BYTES", getattr(self, name))
        if not self.model:
            raise _nonsense("model", self.model, "the name of a model")
        for name, datatype in TENSORS.items():
            value = getattr(self, name)
            if name not in _LISTS and (value is not None or name in _REQUIRED):
                _check(name, datatype, value)

    def _check_ids(self) -> None:
        if isinstance(self.input_ids, (str, bytes)) or not isinstance(self.input_ids, Sequence):
            raise _nonsense(INPUT_IDS, self.input_ids, "a list of token ids")
        object.__setattr__(self, INPUT_IDS, tuple(self.input_ids))
        for value in self.input_ids:
            _check(INPUT_IDS, "INT32", value)
        if self.input_ids and self.text_input:
            raise UsageError("text_input and input_ids are both set; a prompt is one of them")

    def inputs(self) -> dict[str, Any]:
        """Return the values that are set, by tensor name, in the order of TENSORS."""
        values = ((name, getattr(self, name)) for name in TENSORS)
        return {name: value for name, value in values if value is not None and value != ()}

    def outputs(self) -> tuple[str, ...]:
        """Return the output tensors that options of the request ask for."""
        requested = (names for option, names in RETURNED.items() if getattr(self, option))
        return (
            *((SEQUENCE_INDEX,) if self.sequences > 1 else ()),
            *(name for names in requested for name in names),
        )

    @property
    def sequences(self) -> int:
        """Return how many sequences the answer has."""
        return max(self.num_return_sequences or 1, self.beam_width or 1)


Prompt: TypeAlias = "str | Sequence[Mapping[str, str]] | GenerateRequest"
"""A text, the messages of a conversation, or a whole request."""


def as_request(prompt: Prompt, options: Mapping[str, Any]) -> GenerateRequest:
    """Return the request for a prompt; `options` are fields of GenerateRequest.

    Messages have a role and content each; the model's chat template makes a text of them.
    """
    unknown = set(options) - {each.name for each in fields(GenerateRequest)}
    if unknown:
        raise UsageError(
            f"{min(unknown)} is no option of a request; expected fields of GenerateRequest, such "
            "as max_tokens, temperature or stop_words"
        )
    if isinstance(prompt, GenerateRequest):
        return replace(prompt, **options) if options else prompt
    if isinstance(prompt, str):
        return GenerateRequest(prompt, **options)
    return GenerateRequest(_conversation(prompt), **{"apply_chat_template": True, **options})


def as_conversation(messages: str | Sequence[Mapping[str, str]]) -> Sequence[Mapping[str, str]]:
    """Return the messages of a conversation; a text is one message of the user."""
    return [{"role": "user", "content": messages}] if isinstance(messages, str) else messages


def _conversation(messages: Sequence[Mapping[str, str]]) -> str:
    """Return messages as the JSON text that models with a chat template take."""
    if not isinstance(messages, Sequence) or not messages:
        raise _nonsense("prompt", messages, "a text, or a list of messages")
    for message in messages:
        is_message = isinstance(message, Mapping) and {"role", "content"} <= set(message)
        if not is_message or not all(isinstance(value, str) for value in message.values()):
            raise _nonsense("a message", message, "a role and content, both strings")
    # Loaded only here: most prompts are texts.
    import json

    return json.dumps([dict(message) for message in messages], ensure_ascii=False)


class Chunk(str):
    """A piece of one sequence's text, as a string that knows more.

    The last chunk of an answer is `final` and may be empty. `outputs` holds the values of every
    other tensor of the same response, flat, of logits over gRPC as an array; `token_ids` those of a
    model without text.
    """

    __slots__ = ("final", "finish_reason", "outputs", "sequence", "token_ids")

    final: bool
    finish_reason: str | None
    outputs: Mapping[str, Sequence[Any]]
    sequence: int
    token_ids: Sequence[int]

    def __new__(
        cls,
        text: str = "",
        *,
        final: bool = False,
        sequence: int = 0,
        finish_reason: str | None = None,
        outputs: Mapping[str, Sequence[Any]] | None = None,
        token_ids: Sequence[int] = (),
    ) -> Chunk:
        """Make the piece; only its text takes part in comparisons, as of any string."""
        chunk = super().__new__(cls, text)
        chunk.final = final
        chunk.sequence = sequence
        chunk.finish_reason = finish_reason
        chunk.outputs = outputs or {}
        chunk.token_ids = token_ids
        return chunk

    @property
    def text(self) -> str:
        """Return the text alone."""
        return str(self)

    @property
    def says_something(self) -> bool:
        """Say whether there is text, token ids or a reason in it."""
        return bool(self or self.token_ids or self.finish_reason)


def _check(name: str, datatype: str, value: Any) -> None:
    """UsageError unless a tensor of this data type can hold the value."""
    if datatype == "BYTES":
        if not isinstance(value, str):
            raise _nonsense(name, value, "a string")
        if not can_be_encoded(value):
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


def can_be_encoded(text: str) -> bool:
    """Say whether UTF-8 can carry a text: half a surrogate pair it cannot."""
    return _SURROGATE.search(text) is None


def _nonsense(name: str, value: Any, expected: str) -> UsageError:
    return UsageError(f"{name} is {value!r}; expected {expected}")
