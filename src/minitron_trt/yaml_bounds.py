"""YAML that others wrote may say much in few characters; what it says is bounded before it is read.

Aliases of aliases stand for exponentially much, and numbers of any length take quadratic time. For
a value that does not fit its tag PyYAML raises KeyError and the like, which are no YAMLError.
"""

from __future__ import annotations

import re
from typing import Any, Final

import yaml

_MOST_ALIASED: Final = 1 << 20
# Python itself writes out no number of more than 4300 digits.
_LONGEST_NUMBER: Final = 1000
# Beyond it PyYAML comes to Python's limit of recursion, after a time that grows with the square.
_DEEPEST: Final = 200
# At least every integer and float of YAML 1.1, and no base64, which may begin with a digit, too.
_NUMBER: Final = re.compile(r"[-+]?(0[xb][\da-fA-F_]+|[\d.][\d_:.eE+-]*)")
_TAGS: Final = frozenset(
    f"tag:yaml.org,2002:{kind}" for kind in ("bool", "float", "int", "timestamp")
)


def check_bounds(text: str | bytes, *, loader: Any = yaml.SafeLoader) -> None:
    """Raise YAMLError where aliases stand for too much, a number is too long or values too deep.

    So it does for a value that does not fit the tag that is written before it, as `!!int many`.
    """
    sizes: dict[str | None, int] = {}
    opened: list[tuple[str | None, int]] = []
    size = aliased = 0
    for event in yaml.parse(text, Loader=loader):
        if isinstance(event, yaml.AliasEvent):
            # What stands within itself has no end.
            inside = any(anchor == event.anchor for anchor, _ in opened)
            grown = sizes.get(event.anchor, 1)
            size, aliased = size + grown, aliased + grown
            if inside or aliased > _MOST_ALIASED:
                _refuse(event, f"an alias *{event.anchor}; write out what it stands for")
        elif isinstance(event, yaml.ScalarEvent):
            is_tagged = event.tag in _TAGS
            if (event.implicit[0] or is_tagged) and _is_long_number(event.value):
                _refuse(event, f"a number of {len(event.value)} characters")
            if is_tagged and not _fits(event.tag, event.value):
                _refuse(event, f"a value that is no {event.tag.rpartition(':')[2]}")
            size += 1 + len(event.value)
            sizes[event.anchor] = 1 + len(event.value)
        elif isinstance(event, yaml.CollectionStartEvent):
            if event.tag in _TAGS:
                _refuse(event, f"values that are no {event.tag.rpartition(':')[2]}")
            opened.append((event.anchor, size))
            if len(opened) > _DEEPEST:
                _refuse(event, f"values within values, more than {_DEEPEST} deep")
            size += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            sizes[anchor] = size - before


def _is_long_number(word: str) -> bool:
    return len(word) > _LONGEST_NUMBER and _NUMBER.fullmatch(word) is not None


def _fits(tag: str, value: str) -> bool:
    try:
        yaml.constructor.SafeConstructor().construct_object(yaml.ScalarNode(tag, value))
    except (AttributeError, IndexError, KeyError, ValueError):
        return False
    return True


def _refuse(event: yaml.Event, problem: str) -> None:
    found = event.start_mark
    # Without the line itself, which may be a long one.
    mark = yaml.Mark(found.name, found.index, found.line, found.column, None, None)
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
