"""Text that fits its terminal: of tables what matters least is left out, and lines are folded."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TextIO

_GAP = 2
# What comes before a line's last column: text, and the gap that no sentence has.
_BEFORE_LAST: Final = re.compile(r".*\S {2,}| *")

_COMMAND: Final = re.compile(r"\b(?:docker|minitron-trt|pip|trtllm-build) [-a-z]")


@dataclass(frozen=True, slots=True)
class Column:
    """A title and its cells; of those with a `drop`, the one of the largest is left out first."""

    title: str
    cells: Sequence[str]
    left: bool = False
    drop: int = 0

    @property
    def width(self) -> int:
        """Return the width of the widest cell."""
        return max(len(text) for text in (self.title, *self.cells))

    def lines(self) -> list[str]:
        """Return title and cells, all of one width."""
        adjust = str.ljust if self.left else str.rjust
        return [adjust(text, self.width) for text in (self.title, *self.cells)]


def output_width(stream: TextIO | None = None) -> int | None:
    """Return the columns of the terminal that a stream is (stdout), None for a file or a pipe."""
    is_terminal = (stream or sys.stdout).isatty()
    return shutil.get_terminal_size().columns if is_terminal else None


def folded(text: str, width: int | None) -> str:
    """Return text with lines that fit a width, folded at spaces below where their text begins.

    A line with a command stays whole, for whoever pastes it into a shell.
    """
    if width is None:
        return text
    return "\n".join(_folded(line, width) for line in text.split("\n"))


def _folded(line: str, width: int) -> str:
    if len(line) <= width or _COMMAND.search(line):
        return line
    # Only a long line needs it.
    from textwrap import wrap

    match = _BEFORE_LAST.match(line)
    begin = match.end() if match else 0
    indent = begin if begin <= width // 2 else 0
    parts = wrap(line[indent:], width - indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join([line[:indent] + parts[0], *(" " * indent + part for part in parts[1:])])


def fitting(columns: Sequence[Column], width: int | None) -> tuple[list[Column], list[Column]]:
    """Return the columns that fit a width, and those that were left out."""
    kept, left_out = list(columns), []
    while width is not None and _total(kept) > width:
        widest = max(kept, key=lambda column: column.drop)
        if not widest.drop:
            break
        kept.remove(widest)
        left_out.append(widest)
    return kept, left_out


def _total(columns: Sequence[Column]) -> int:
    return sum(column.width for column in columns) + _GAP * (len(columns) - 1)


def number_text(value: float) -> str:
    """Return a figure with as many digits as mean something."""
    if value == 0 or abs(value) >= 1000 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def table_lines(columns: Sequence[Column]) -> list[str]:
    """Return a table, its titles first."""
    rows = zip(*(column.lines() for column in columns), strict=True)
    return [(" " * _GAP).join(cells).rstrip() for cells in rows]
