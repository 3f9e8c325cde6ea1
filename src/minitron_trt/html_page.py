"""Pages of HTML that load nothing from elsewhere: one style for all reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from minitron_trt.version import __version__

_STYLE: Final = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 20%, transparent);
  --good: light-dark(#1a7f37, #4ac26b); --bad: light-dark(#b42318, #ff8277); }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; } h3 { font-size: 1rem; }
div.table { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
th { font-weight: 600; }
td.text, th.text { text-align: left; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.2rem; }
dt { font-weight: 600; } dd { margin: 0; } p, dt, dd { overflow-wrap: anywhere; }
@media (max-width: 40rem) { dl { display: block; } dd { margin: 0 0 .6rem; } }
svg.chart { max-width: 100%; height: auto; display: block; margin: 1rem 0; }
svg.chart text { fill: currentColor; }
pre { overflow-x: auto; padding: .6rem .8rem; border: 1px solid var(--line); border-radius: 4px; }
small { opacity: .75; } .good { color: var(--good); } .bad { color: var(--bad); }
@media print {
  @page { margin: 15mm; }
  body { font-size: 10pt; max-width: none; margin: 0; padding: 0; }
  h2, h3 { break-after: avoid; } svg.chart, tr, pre, dl { break-inside: avoid; }
  thead { display: table-header-group; } div.table { overflow: visible; }
  pre { white-space: pre-wrap; } th, td { padding: .15rem .45rem; }
}
"""


def page(title: str, parts: Iterable[str], *, note: str) -> str:
    """Return a page of parts, which are HTML; `note` is text at its end."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}'
        '</title><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>\n<h1>{escape(title)}</h1>\n"
        + "\n".join(parts)
        + f"\n<p><small>{escape(note)} minitron-trt {escape(__version__)}</small></p>"
        "\n</body></html>\n"
    )


def table(head: Sequence[str] | None, rows: Sequence[Sequence[str]], *, texts: int = 1) -> str:
    """Return a table of texts; the first `texts` columns are words, the others numbers."""
    top = f"<thead>{_row(head, 'th', texts=texts)}</thead>" if head else ""
    body = "".join(_row(cells, "td", texts=texts) for cells in rows)
    return f'<div class="table"><table>{top}<tbody>{body}</tbody></table></div>'


def _row(cells: Sequence[str], tag: str, *, texts: int) -> str:
    words = "".join(f'<{tag} class="text">{escape(cell)}</{tag}>' for cell in cells[:texts])
    numbers = "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells[texts:])
    return f"<tr>{words}{numbers}</tr>"


def folded(summary: str, part: str) -> str:
    """Return a part that is shown when its summary is clicked."""
    return f"<details><summary>{escape(summary)}</summary>{part}</details>"


def small(text: str) -> str:
    """Return a note below a table."""
    return f"<p><small>{escape(text)}</small></p>"
