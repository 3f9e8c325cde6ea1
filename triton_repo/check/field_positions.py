"""Where each field of a config.pbtxt stands, also in a file that does not parse.

Protobuf's parser stops at the first fault and keeps no positions. This reading never fails: it
knows every field's line, every `${...}` that a template was left with, and every unknown field.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from minitron_trt.triton_repo.config_messages import model_config_pb2

Descriptor: TypeAlias = Any
"""A protobuf descriptor of a message or a field; protobuf ships no types."""

_TOKEN: Final = re.compile(
    r"""(?P<comment>\#[^\n]*)
    |(?P<text>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
    |(?P<placeholder>\$\{[^}\n]*\})
    |(?P<word>[\w.+-]+)
    |(?P<mark>[{}<>\[\]:,;])
    |(?P<other>\S)""",
    re.VERBOSE,
)
PLACEHOLDER: Final = re.compile(r"\$\{[^}\n]*\}")
# Protobuf's text format has both pairs, and either mark between the values of a list.
_OPEN: Final = {"{": "}", "<": ">"}
_SEPARATORS: Final = (",", ";")
_NUMBER: Final = "1"


@dataclass(frozen=True, slots=True)
class Placeholder:
    """A `${...}` that a template was left with."""

    name: str
    path: str
    line: int
    column: int
    whole: bool  # nothing else is in the value
    quoted: bool


@dataclass(frozen=True, slots=True)
class Outline:
    """The fields of a text by path, like `input[2].dims` or `parameters["k"].string_value`."""

    places: Mapping[str, tuple[int, int]]
    placeholders: tuple[Placeholder, ...]
    unknown: tuple[str, ...]  # paths of fields that the message does not have
    repeated: tuple[str, ...]  # paths of map keys that occur again
    filled: str  # the text with plausible values for what is not quoted

    def line(self, path: str) -> int | None:
        """Return the line of a field, or of what is around it when it is absent."""
        while path:
            if path in self.places:
                return self.places[path][0]
            # Shorter each time, also where a key holds brackets or points of its own.
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return None


def outline(text: str) -> Outline:
    """Read a config.pbtxt, whatever is wrong with it."""
    root = _Node("", 1, 1, model_config_pb2.ModelConfig.DESCRIPTOR)
    reader = _TextFormatReader(text)
    reader.message(root, closing=None)
    fields = _Fields()
    fields.walk(root, "")
    filled = text
    # From the end on, so that the places of earlier ones stay.
    for start, end, value in reversed(reader.fills):
        filled = filled[:start] + value + filled[end:]
    return Outline(
        places=fields.places,
        placeholders=tuple(fields.placeholders),
        unknown=tuple(fields.unknown),
        repeated=tuple(fields.repeated),
        filled=filled,
    )


@dataclass(slots=True)
class _Token:
    kind: str
    text: str
    start: int
    end: int
    line: int
    column: int


@dataclass(slots=True)
class _Node:
    name: str
    line: int
    column: int
    message: Descriptor | None  # of its children
    known: Descriptor | None = None
    value: list[_Token] = field(default_factory=list)
    children: list[_Node] = field(default_factory=list)

    @property
    def is_entry(self) -> bool:
        return self.message is not None and bool(self.message.GetOptions().map_entry)

    def child(self, name: str) -> _Node | None:
        return next((child for child in self.children if child.name == name), None)

    def text(self) -> str:
        return "".join(t.text[1:-1] if t.kind == "text" else t.text for t in self.value)


def _tokens(text: str) -> Iterator[_Token]:
    line, line_start = 1, 0
    position = 0
    for match in _TOKEN.finditer(text):
        line += text.count("\n", position, match.start())
        line_start = text.rfind("\n", 0, match.start()) + 1
        position = match.start()
        kind = str(match.lastgroup)
        if kind != "comment":
            column = match.start() - line_start + 1
            yield _Token(kind, match.group(), match.start(), match.end(), line, column)


class _TextFormatReader:
    """A forgiving reading of the text format: what makes no sense is stepped over."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._next = 0
        self.fills: list[tuple[int, int, str]] = []

    def message(self, parent: _Node, closing: str | None) -> None:
        """Read fields into `parent` up to a closing brace or the end."""
        while (token := self._take()) is not None:
            if token.text == closing:
                return
            if token.kind == "word":
                self._field(token, parent)

    def _field(self, name: _Token, parent: _Node) -> None:
        known = parent.message.fields_by_name.get(name.text) if parent.message else None
        self._skip(":")
        if self._skip("["):
            while (token := self._peek()) is not None and not self._skip("]"):
                separates = token.text in _SEPARATORS
                if separates or not self._value(token, name.text, known, parent):
                    self._take()
        elif (token := self._peek()) is not None:
            self._value(token if token.text in _OPEN else name, name.text, known, parent)
        if (token := self._peek()) is not None and token.text in _SEPARATORS:
            self._take()

    def _value(self, at: _Token, name: str, known: Descriptor | None, parent: _Node) -> bool:
        """Read one value; False when there is none."""
        node = _Node(name, at.line, at.column, known and known.message_type, known)
        parent.children.append(node)
        token = self._peek()
        if token is not None and token.text in _OPEN:
            self._take()
            self.message(node, _OPEN[token.text])
            return True
        while (token := self._peek()) is not None and _continues(token, node.value):
            self._take()
            node.value.append(token)
            if token.kind == "placeholder":
                self.fills.append((token.start, token.end, _plausible(known)))
        return bool(node.value)

    def _peek(self) -> _Token | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def _take(self) -> _Token | None:
        token = self._peek()
        self._next += 1
        return token

    def _skip(self, mark: str) -> bool:
        token = self._peek()
        is_next = token is not None and token.text == mark
        self._next += is_next
        return is_next


def _continues(token: _Token, value: list[_Token]) -> bool:
    """Say whether a token belongs to a value: the first one, and strings or a template's rest."""
    if token.kind == "mark":
        return False
    if not value:
        return True
    last = value[-1]
    return token.kind == last.kind == "text" or (
        token.start == last.end and "placeholder" in (token.kind, last.kind)
    )


def _plausible(known: Descriptor | None) -> str:
    if known is None or known.type in (known.TYPE_STRING, known.TYPE_BYTES):
        return '""'
    if known.type == known.TYPE_BOOL:
        return "true"
    if known.type == known.TYPE_ENUM:
        # The first is TYPE_INVALID, and the like, which would be one more fault.
        return str(known.enum_type.values[-1].name)
    return _NUMBER


class _Fields:
    """What a text has, by path; a map's entries by their key."""

    def __init__(self) -> None:
        self.places: dict[str, tuple[int, int]] = {}
        self.placeholders: list[Placeholder] = []
        self.unknown: list[str] = []
        self.repeated: list[str] = []

    def walk(self, parent: _Node, prefix: str) -> None:
        """Note the children of a node, whose paths begin with `prefix`."""
        counts: Counter[str] = Counter()
        for node in parent.children:
            path = prefix + node.name
            if node.is_entry:
                self._entry(node, path)
                continue
            # What may occur many times defaults to an empty list.
            if node.known is not None and node.known.default_value == []:
                path = f"{path}[{counts[node.name]}]"
            elif node.known is None and parent.message is not None:
                self.unknown.append(path)
            counts[node.name] += 1
            self._note(node, path)
            self.walk(node, f"{path}.")

    def _entry(self, node: _Node, path: str) -> None:
        key, value = node.child("key"), node.child("value")
        path = f'{path}["{key.text() if key else ""}"]'
        # Protobuf keeps the last entry of a key, and says nothing.
        if path in self.places:
            self.repeated.append(path)
        self.places[path] = (node.line, node.column)
        if value is not None:
            self._note(value, path)
            self.walk(value, f"{path}.")

    def _note(self, node: _Node, path: str) -> None:
        self.places[path] = (node.line, node.column)
        for token in node.value:
            for match in PLACEHOLDER.finditer(token.text):
                self.placeholders.append(
                    Placeholder(
                        name=match.group()[2:-1],
                        path=path,
                        line=token.line,
                        column=token.column + match.start(),
                        whole=node.text() == match.group(),
                        quoted=token.kind == "text",
                    )
                )
