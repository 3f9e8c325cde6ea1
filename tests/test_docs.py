"""What the pages say about the tree is true of the tree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (
    "build",
    "clients",
    "convert",
    "deploy",
    "docs",
    "evaluate",
    "gateway",
    "loadtest",
    "src",
    "tests",
    "triton_repo",
)
NAMED = re.compile(r"`([\w./-]+(?:/|\.py|\.json|\.toml))`")
LINKED = re.compile(r"\]\(([^)#:]+)\)")


def paths() -> list[str]:
    """Return every file and folder of the tree, a folder with a slash at its end."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    files = [*found, *ROOT.iterdir()]
    return [f"/{path.relative_to(ROOT)}{'/' if path.is_dir() else ''}" for path in files]


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_the_files_that_a_page_names_are_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    there = paths()
    # A page may leave out how a path begins.
    lost = {name for name in NAMED.findall(text) if not any(f"/{name}" in path for path in there)}
    dead = {link for link in LINKED.findall(text) if not ((ROOT / page).parent / link).exists()}

    assert (lost - {"minitron.json"}, dead) == (set(), set())
