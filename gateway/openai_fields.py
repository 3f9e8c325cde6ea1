"""The bodies of OpenAI's requests for text: fields and their limits.

They are those of OpenAI's API (completions and chat completions); what is added has the names by
which vLLM and NVIDIA's own frontend take it. A field that nobody knows is refused, as OpenAI does.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta, Struct

from minitron_trt.gateway.openai_errors import ApiError

_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
_Words = str | Annotated[list[str], Meta(max_length=1024)]


class StreamOptions(Struct, forbid_unknown_fields=True):
    """Of a streamed answer: whether its last chunk, or as vLLM has it each, tells the usage."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


# Here and in messages, fields that have no effect on a text (`strict`, `description`) may come.
class JsonSchema(Struct):
    """A schema that the answer is to follow."""

    name: str = ""
    schema: dict[str, Any] | None = None


class ResponseFormat(Struct):
    """The form of the answer: text, json_object or json_schema."""

    type: str
    json_schema: JsonSchema | None = None


class SamplingFields(Struct, kw_only=True, forbid_unknown_fields=True):
    """What completions and chat completions share."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stop: _Words | None = None
    seed: int | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    max_tokens: _Count | None = None
    response_format: ResponseFormat | None = None
    # Beyond OpenAI's.
    top_k: _Count | None = None
    repetition_penalty: float | None = None
    min_tokens: _Count | None = None
    ignore_eos: bool | None = None
    bad_words: _Words | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: Annotated[list[str], Meta(min_length=1)] | None = None
    guided_grammar: str | None = None
    # Of OpenAI's that change nothing in an answer: bookkeeping.
    user: str | None = None
    metadata: Any = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Any = None
    # Of OpenAI's that Triton's models of text cannot follow.
    logit_bias: Any = None


class CompletionRequest(SamplingFields, kw_only=True):
    """The body of /v1/completions."""

    prompt: str | list[str | int | list[int]]
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    best_of: int | None = None
    suffix: Any = None


class TextPart(Struct):
    """A piece of a message."""

    type: str
    text: str | None = None


class ChatMessage(Struct):
    """What one side said."""

    role: str
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: Any = None
    tool_call_id: str | None = None
    function_call: Any = None
    refusal: str | None = None
    audio: Any = None
    annotations: Any = None


class ChatRequest(SamplingFields, kw_only=True):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_completion_tokens: _Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    parallel_tool_calls: bool | None = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    modalities: list[str] | None = None
    audio: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    web_search_options: Any = None


B = TypeVar("B", bound=SamplingFields)
# msgspec says what is wrong with a body, and where, in its message alone.
_UNKNOWN: Final = re.compile(r"unknown field `([^`]*)`")
_AT: Final = re.compile(r" - at `\$\.?([^`]*)`$")
_MISSING: Final = re.compile(r"missing required field `([^`]*)`")


def read_body(body: bytes, kind: type[B]) -> B:
    """Return the fields of a body; ApiError in OpenAI's words when it is none."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise ApiError(
            "We could not parse the JSON body of your request. (HINT: This likely means you "
            f"aren't using your HTTP library correctly: {error})"
        ) from error


def _invalid(words: str) -> ApiError:
    if unknown := _UNKNOWN.search(words):
        return ApiError(f"Unrecognized request argument supplied: {unknown[1]}")
    if (missing := _MISSING.search(words)) and not _AT.search(words):
        param = missing[1]
        what = "you must provide a model parameter" if param == "model" else None
        return ApiError(what or f"Missing required parameter: '{param}'.", param=param)
    at = _AT.search(words)
    param = at[1] if at else None
    named = f"Invalid value for '{param}': " if param else ""
    return ApiError(named + _AT.sub("", words), param=param and param.partition("[")[0])
