"""OpenAI's requests for text, as the requests to Triton that they mean.

A field that the model cannot follow is refused by its name, unless its value asks for nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from minitron_trt.chat_templates import PromptTemplate
from minitron_trt.clients.messages import GenerateRequest
from minitron_trt.clients.model_interface import ModelInterface
from minitron_trt.clients.openai_terms import DRAWN, choice_pattern
from minitron_trt.gateway.openai_errors import ApiError, no_template
from minitron_trt.gateway.openai_fields import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    ResponseFormat,
    SamplingFields,
)

COMPLETION_MAX_TOKENS: Final = 16
"""What OpenAI's completions make at most where a request does not say."""

_EXCLUDE: Final = "exclude_input_in_output"
_DEFAULTS: Final = {**DRAWN, "presence_penalty": 0.0, "frequency_penalty": 0.0}

_SAME_NAME: Final = (*_DEFAULTS, "seed", "top_k", "repetition_penalty", "min_tokens")

_UNSUPPORTED: Final[dict[str, tuple[Any, ...]]] = {
    "logit_bias": ({},),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
}
"""Fields that are refused, and their values, beside null, that ask for nothing."""


@dataclass(frozen=True, slots=True)
class AskedText:
    """What a client asked for, as requests to Triton: one for each prompt.

    `model` is the client's name for it; `tells_likeliest` that with each token's log-prob the
    likeliest token is wanted, which is the same one.
    """

    model: str
    requests: tuple[GenerateRequest, ...]
    is_chat: bool
    streams: bool
    include_usage: bool
    tells_usage_always: bool
    log_probs: bool
    tells_likeliest: bool
    echoes: bool = False

    @property
    def sequences(self) -> int:
        """Return how many sequences are made."""
        return sum(request.sequences for request in self.requests)


@dataclass(frozen=True, slots=True)
class ModelTarget:
    """The model behind a name: Triton's name, what it takes, and what fills a request's gaps.

    `template` turns messages into a prompt where the model's own is not to be used.
    """

    triton_name: str
    interface: ModelInterface
    chat_max_tokens: int
    template: PromptTemplate | None = None


def asked_completion(fields: CompletionRequest, target: ModelTarget) -> AskedText:
    """Return the requests of /v1/completions; ApiError names the field that cannot be followed."""
    _check(fields)
    if fields.best_of not in (None, fields.n or 1):
        raise _unsupported("best_of", "more answers than are returned are not made")
    if fields.echo and fields.logprobs is not None:
        raise _unsupported("logprobs", "a prompt's own log-probs are not known")
    max_tokens = COMPLETION_MAX_TOKENS if fields.max_tokens is None else fields.max_tokens
    options = _options(fields, max_tokens, target.interface)
    if target.interface.takes(_EXCLUDE):
        # In a stream Triton's models repeat no prompt: the answer is put behind it here.
        options[_EXCLUDE] = True
    if fields.logprobs is not None:
        options["return_log_probs"] = True
        _check_likeliest(fields.logprobs, options, "logprobs")
    return AskedText(
        model=fields.model,
        requests=tuple(
            GenerateRequest(prompt, model=target.triton_name, count_tokens=True, **options)
            for prompt in _prompts(fields.prompt)
        ),
        is_chat=False,
        streams=bool(fields.stream),
        include_usage=_streams_with(fields, "include_usage"),
        tells_usage_always=_streams_with(fields, "continuous_usage_stats"),
        log_probs=fields.logprobs is not None,
        echoes=bool(fields.echo),
        tells_likeliest=bool(fields.logprobs),
    )


def asked_chat(fields: ChatRequest, target: ModelTarget) -> AskedText:
    """Return the request of /v1/chat/completions, in the model's chat template."""
    _check(fields)
    if fields.top_logprobs is not None and not fields.logprobs:
        raise ApiError(
            "Invalid value for 'top_logprobs': it needs 'logprobs' to be true.",
            param="top_logprobs",
        )
    limits = (fields.max_completion_tokens, fields.max_tokens, target.chat_max_tokens)
    max_tokens = next(limit for limit in limits if limit is not None)
    options = _options(fields, max_tokens, target.interface)
    if target.interface.takes(_EXCLUDE):
        options[_EXCLUDE] = True
    if fields.logprobs:
        options["return_log_probs"] = True
        _check_likeliest(fields.top_logprobs or 0, options, "top_logprobs")
    messages = [_message(message, index) for index, message in enumerate(fields.messages)]
    if target.template is not None:
        prompt = _rendered(target.template, messages)
        options["stop_words"] += target.template.stop_words
    elif target.interface.takes("apply_chat_template"):
        prompt = json.dumps(messages, ensure_ascii=False)
        options["apply_chat_template"] = True
    else:
        raise no_template(fields.model)
    request = GenerateRequest(prompt, model=target.triton_name, count_tokens=True, **options)
    return AskedText(
        model=fields.model,
        requests=(request,),
        is_chat=True,
        streams=bool(fields.stream),
        include_usage=_streams_with(fields, "include_usage"),
        tells_usage_always=_streams_with(fields, "continuous_usage_stats"),
        log_probs=bool(fields.logprobs),
        tells_likeliest=bool(fields.top_logprobs),
    )


def _check(fields: SamplingFields) -> None:
    for name, harmless in _UNSUPPORTED.items():
        value = getattr(fields, name, None)
        if value is not None and value not in harmless:
            raise _unsupported(name, "the models behind this server cannot follow it")
    if fields.stream_options is not None and not fields.stream:
        raise ApiError(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            param="stream_options",
        )


def _options(fields: SamplingFields, max_tokens: int, interface: ModelInterface) -> dict[str, Any]:
    """Return the fields of GenerateRequest; of OpenAI's defaults those that the model takes."""
    defaults = {name: value for name, value in _DEFAULTS.items() if interface.takes(name)}
    chosen = {name: value for name in _SAME_NAME if (value := getattr(fields, name)) is not None}
    if fields.ignore_eos:
        # Load tests ask for it: the end of a text is not chosen before the last token.
        chosen["min_tokens"] = max_tokens
    several = {"num_return_sequences": fields.n} if (fields.n or 1) > 1 else {}
    # GenerateRequest's `stream` stays true, also for a whole answer: only in a stream does Triton
    # notice that a client has left.
    return {
        "max_tokens": max_tokens,
        **defaults,
        **chosen,
        **several,
        "stop_words": _words(fields.stop),
        "bad_words": _words(fields.bad_words),
        **_guide(fields),
    }


def _words(words: str | list[str] | None) -> tuple[str, ...]:
    listed = (words,) if isinstance(words, str) else tuple(words or ())
    return tuple(word for word in listed if word)


def _guide(fields: SamplingFields) -> dict[str, str]:
    """Return TensorRT-LLM's kind of guide, and the guide."""
    choices = fields.guided_choice
    guides = {
        "response_format": _format_guide(fields.response_format),
        "guided_json": ("json_schema", _schema_text(fields.guided_json)),
        "guided_regex": ("regex", fields.guided_regex),
        "guided_choice": ("regex", None if choices is None else choice_pattern(choices)),
        "guided_grammar": ("ebnf_grammar", fields.guided_grammar),
    }
    # Of TensorRT-LLM's kinds json alone has no guide.
    chosen = {
        name: guide
        for name, guide in guides.items()
        if guide is not None and (guide[1] is not None or guide[0] == "json")
    }
    if len(chosen) > 1:
        names = sorted(chosen)
        raise ApiError(f"'{names[0]}' and '{names[1]}' exclude each other.", param=names[1])
    for kind, guide in chosen.values():
        told = {} if guide is None else {"guided_decoding_guide": guide}
        return {"guided_decoding_guide_type": kind, **told}
    return {}


def _format_guide(form: ResponseFormat | None) -> tuple[str, str | None] | None:
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return "json", None
    if form.type != "json_schema":
        raise ApiError(
            f"Invalid value: '{form.type}'. Supported values are: 'text', 'json_object' and "
            "'json_schema'.",
            param="response_format.type",
        )
    if form.json_schema is None or form.json_schema.schema is None:
        raise ApiError(
            "Missing required parameter: 'response_format.json_schema.schema'.",
            param="response_format.json_schema.schema",
        )
    return "json_schema", json.dumps(form.json_schema.schema)


def _schema_text(schema: dict[str, Any] | str | None) -> str | None:
    return json.dumps(schema) if isinstance(schema, dict) else schema


def _prompts(prompt: str | list[str | int | list[int]]) -> list[str]:
    texts = [prompt] if isinstance(prompt, str) else prompt
    if not texts:
        raise ApiError("Invalid value for 'prompt': it is empty.", param="prompt")
    found = [text for text in texts if isinstance(text, str)]
    if len(found) < len(texts):
        raise _unsupported("prompt", "the model takes a text, or a list of texts, and no token ids")
    return found


def _message(message: ChatMessage, index: int) -> dict[str, str]:
    """Return a message as chat templates take it: the developer is the system, parts are joined."""
    where = f"messages[{index}]"
    for name in ("tool_calls", "function_call", "audio"):
        if getattr(message, name):
            raise _unsupported(f"{where}.{name}", "the model's messages are of text")
    content = message.content
    if isinstance(content, list):
        for part in content:
            if part.type != "text" or part.text is None:
                raise _unsupported(f"{where}.content", f"{part.type} is no text")
        # As vLLM joins them where a template takes strings.
        content = "\n".join(part.text or "" for part in content)
    if content is None:
        raise ApiError(
            f"Invalid value for '{where}.content': expected a string, got null.",
            param=f"{where}.content",
        )
    role = "system" if message.role == "developer" else message.role
    if role not in ("system", "user", "assistant", "tool", "function"):
        raise ApiError(
            f"Invalid value: '{role}'. Supported values are: 'system', 'assistant', 'user', "
            "'function', 'tool', and 'developer'.",
            param=f"{where}.role",
        )
    told = {} if message.name is None else {"name": message.name}
    return {"role": role, "content": content, **told}


def _rendered(template: PromptTemplate, messages: list[dict[str, str]]) -> str:
    try:
        return template.render(messages)
    except Exception as error:  # a template may raise anything, by its own words or a fault in it
        raise ApiError(
            f"the messages do not fit the chat template: {error}", param="messages"
        ) from error


def _check_likeliest(count: int, options: dict[str, Any], name: str) -> None:
    """ApiError unless the only alternative that is asked for is the token that is taken."""
    is_greedy = options.get("temperature") == 0 or options.get("top_k") == 1
    if count > 1 or (count == 1 and not is_greedy):
        raise _unsupported(
            name,
            "the model tells the log-prob of the token that it takes and of no other; ask for 0, "
            "or for 1 with a temperature of 0",
        )


def _streams_with(fields: SamplingFields, option: str) -> bool:
    return fields.stream_options is not None and bool(getattr(fields.stream_options, option))


def _unsupported(param: str, why: str) -> ApiError:
    return ApiError(
        f"Unsupported parameter: '{param}' is not supported with this model: {why}.",
        param=param,
        code="unsupported_parameter",
    )
