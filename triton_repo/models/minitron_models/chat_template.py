"""A tokenizer's chat template: the environment that transformers gives one, in jinja2's sandbox.

The template is part of a model that came from elsewhere, so it gets plain data and no way out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

Message = Mapping[str, Any]
# What a message's reasoning is called; templates read the first, those of gpt-oss the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """Turns messages into a prompt."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._source = source
        self._special_tokens = special_tokens

    def render(self, messages: Iterable[Message]) -> str:
        """Return the prompt that an answer goes on from; whatever the template raises."""
        return self._compiled.render(
            **{
                "messages": [_message(message) for message in messages],
                # Defined, as there are templates that ask whether they are none.
                "tools": None,
                "documents": None,
                "add_generation_prompt": True,
                **self._special_tokens,
            }
        )

    @cached_property
    def _compiled(self) -> Template:
        # The options of transformers, for whose white space templates are written.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "dict": _Dict(),
            "namespace": _Namespace,
        }
        return environment.from_string(self._source)


def _message(message: Message) -> dict[str, Any]:
    """Return a message as templates expect it: without fields that say nothing."""
    told = {name: value for name, value in message.items() if value is not None}
    reasoning = next((told[name] for name in _REASONING if name in told), None)
    if reasoning is None:
        return told
    return {"thinking": reasoning, **told, "reasoning_content": reasoning}


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON in which no character is escaped for HTML, as jinja2's own filter does."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


class _Generation(Extension):
    """`{% generation %}` marks an assistant's text for training; of a prompt it changes nothing."""

    tags = {"generation"}  # noqa: RUF012  (jinja2's own declaration)

    def parse(self, parser: Parser) -> nodes.Node:
        """Return the marked statements, in a scope of their own as transformers has it."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

    def _text(self, caller: Macro) -> str:
        return str(caller())


class _Dict:
    """`dict`, of which a template sees what it calls and nothing of Python's type."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, keys: Sequence[Any], value: Any = None) -> dict[Any, Any]:
        """Return a dictionary of these keys with one value."""
        return dict.fromkeys(keys, value)


class _Namespace(Namespace):
    """A namespace without names that begin with `_`, which lead into Python itself."""

    def __init__(*args: Any, **values: Any) -> None:
        # Signed as jinja2's own, so that `namespace(self=…)` is a name like another.
        for name in dict(*args[1:], **values):
            _check_name(name)
        Namespace.__init__(*args, **values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a chat template sets {name!r} in a namespace")
