"""`minitron-trt docs`: the pages and the dashboard that come with this version."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import click
import cloup

from minitron_trt.console import Console, console_options
from minitron_trt.errors import UsageError
from minitron_trt.option_types import suggestion

_FOLDER: Final = Path(__file__).with_name("docs")


@cloup.command()
@cloup.argument("page", required=False)
@console_options
def docs(console: Console, page: str | None) -> None:
    """List the pages of the documentation, or print one of them.

    PAGE is a name of the list, which ends with a dashboard for Grafana. On a terminal a page is
    shown by the pager.

    Example: minitron-trt docs how-to/gpu-docker

    Example: minitron-trt docs grafana.json > dashboard.json
    """
    pages = _pages()
    if page is None:
        titles = {name: _title(path) for name, path in pages.items()}
        width = max(map(len, titles))
        lines = [f"{name:<{width}}  {title}" for name, title in titles.items()]
        console.result({"pages": titles}, "\n".join(lines))
        return
    path = pages.get(page.removesuffix(".md"))
    if path is None:
        raise UsageError(
            f"there is no page {page!r}{suggestion(page, pages)}; see minitron-trt docs"
        )
    text = path.read_text(encoding="utf-8")
    if sys.stdout.isatty() and not console.as_json:
        click.echo_via_pager(text)
        return
    console.result({"page": page, "text": text}, text.rstrip("\n"))


def _pages() -> dict[str, Path]:
    """Return the files by name, pages first and the index before the others."""
    pages = {str(path.relative_to(_FOLDER))[:-3]: path for path in _FOLDER.rglob("*.md")}
    order = sorted(pages, key=lambda name: (name != "index", name))
    others = {path.name: path for path in sorted(_FOLDER.glob("*.json"))}
    return {name: pages[name] for name in order} | others


def _title(path: Path) -> str:
    """Return a page's headline; of the dashboard what it is."""
    if path.suffix != ".md":
        return "a dashboard, to be imported in Grafana"
    with path.open(encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()
