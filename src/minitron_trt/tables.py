"""Tables of text that fit their terminal: what matters least is left out, and named."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass

_GAP = 2


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


def output_width() -> int | None:
    """Return the columns of the terminal that stdout is; None where it is a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


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


def table_lines(columns: Sequence[Column]) -> list[str]:
    """Return a table, its titles first."""
    rows = zip(*(column.lines() for column in columns), strict=True)
    return [(" " * _GAP).join(cells).rstrip() for cells in rows]
