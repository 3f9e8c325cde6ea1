"""A hook of mkdocs: pages of the repository's root stand beside those of docs/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
_OF_THE_ROOT = ("CHANGELOG.md", "CONTRIBUTING.md")


def on_files(files: Files, config: Any) -> Files:
    """Add the root's pages."""
    for name in _OF_THE_ROOT:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Have links between the root's pages and those of docs/ lead to one folder."""
    if page.file.src_uri in _OF_THE_ROOT:
        return markdown.replace("](docs/", "](")
    for name in _OF_THE_ROOT:
        markdown = markdown.replace(f"](../{name}", f"]({name}")
    return markdown
