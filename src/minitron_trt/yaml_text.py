"""YAML as people write it: no anchors, texts line by line, numbers with their reasons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import yaml

Scalar = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Figure:
    """A value, and where it comes from, which stands behind it as a comment.

    `knob` is the place of the value among those that a Helm chart lets people set, such as
    `server.memory`; without one it is what it is.
    """

    value: Scalar
    why: str
    knob: str | None = None


def figures_of(tree: Any) -> Iterable[Figure]:
    """Yield the figures of a tree, in their order."""
    if isinstance(tree, Figure):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from figures_of(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from figures_of(value)


def yaml_text(documents: Iterable[Any]) -> str:
    """Return documents as the text of one file."""
    return _dumped(_Dumper, documents)


def template_text(documents: Iterable[Any]) -> str:
    """Return documents as a Helm template: what has a knob is filled in from its values."""
    return _dumped(_TemplateDumper, documents)


def _dumped(dumper: type[yaml.SafeDumper], documents: Iterable[Any]) -> str:
    trees = list(documents)
    text: str = yaml.dump_all(
        trees,
        Dumper=dumper,
        sort_keys=False,
        # So that no text is folded: its comment stands behind it on the same line.
        width=1000,
        allow_unicode=True,
        explicit_start=len(trees) > 1,
    )
    return text


class _Commented(str):
    """What a scalar is written as, with the comment that follows it."""

    why: str


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Writes figures with their reasons."""

    def ignore_aliases(self, data: Any) -> bool:
        """Say that a value which stands twice is written twice."""
        return True

    def process_scalar(self) -> None:
        """Write a scalar, and its comment behind it."""
        why = getattr(self.event.value, "why", "")
        super().process_scalar()
        if why:
            comment = f"  # {why}"
            self.stream.write(comment)
            # What follows then begins on a line of its own.
            self.column += len(comment)


class _TemplateDumper(_Dumper):
    """Writes a Helm template."""

    def process_tag(self) -> None:
        """Write the tag of a value, but for what only marks one that Helm fills in."""
        if self.event.tag == _VERBATIM:
            self.tag = None
        else:
            super().process_tag()

    def process_scalar(self) -> None:
        """Write a scalar; what Helm fills in stands as it is, unquoted."""
        if self.event.tag != _VERBATIM:
            super().process_scalar()
            return
        # With its braces in quotes, what it fills in would be a text.
        text = f"{self.event.value}  # {self.event.value.why}"
        self.write_indicator(text, True)
        self.analysis = self.style = None


def _commented(text: str, why: str) -> _Commented:
    commented = _Commented(text)
    commented.why = why
    return commented


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar(_TEXT, text, style=style)


def _represent_template_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # What Helm would take for its own is written as a text that it prints.
    return _represent_text(dumper, text.replace("{{", '{{ "{{" }}'))


def _represent_figure(dumper: yaml.SafeDumper, figure: Figure) -> yaml.ScalarNode:
    node = dumper.represent_data(figure.value)
    node.value = _commented(node.value, figure.why)
    return node


def _represent_knob(dumper: yaml.SafeDumper, figure: Figure) -> yaml.ScalarNode:
    if figure.knob is None:
        return _represent_figure(dumper, figure)
    quoted = " | quote" if isinstance(figure.value, str) else ""
    value = f"{{{{ .Values.{figure.knob}{quoted} }}}}"
    return yaml.ScalarNode(_VERBATIM, _commented(value, figure.why), style=None)


_TEXT: Final = "tag:yaml.org,2002:str"
_VERBATIM: Final = "!verbatim"
_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(Figure, _represent_figure)
_TemplateDumper.add_representer(str, _represent_template_text)
_TemplateDumper.add_representer(Figure, _represent_knob)
