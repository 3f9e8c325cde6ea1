"""A table of a plan's rows, what its columns mean, and which of them a width leaves out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from minitron_trt.tables import Column, fitting, table_lines

TEXT_WIDTH: Final = 80
_LEFT: Final = ("GPU", "precision")


def row_table(
    rows: Sequence[Mapping[str, str]],
    *,
    drops: Mapping[str, int],
    meanings: Mapping[str, str],
    width: int | None,
) -> tuple[list[str], str]:
    """Return the lines of a table with its meanings, and a sentence about columns left out, if any.

    A row has its cells by title. Of the titles in `drops` the one of the largest number goes first.
    """
    columns, left_out = fitting(
        [
            Column(title, [row[title] for row in rows], title in _LEFT, drops.get(title, 0))
            for title in rows[0]
        ],
        width,
    )
    titles = [column.title for column in columns if column.title in meanings]
    widest = max(map(len, titles))
    lines = [
        *table_lines(columns),
        "",
        *(f"  {title:{widest}}  {meanings[title]}" for title in titles),
    ]
    names = ", ".join(column.title for column in left_out)
    return lines, f"Left out at this width: {names}; --json has all." if left_out else ""
