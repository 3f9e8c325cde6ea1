"""The package's page leads to the repository, wherever that lies, and the pages come along."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager
from tests.shown_commands import ROOT, pages

Command = Callable[..., Result]
PLACE = "https://example.org/people/minitron-trt"


def metadata_at(address: str, monkeypatch: pytest.MonkeyPatch) -> ProjectMetadata[PluginManager]:
    """Return the package's metadata where the repository was cloned from an address."""
    monkeypatch.setenv("PROJECT_URL", address)
    return ProjectMetadata(str(ROOT), PluginManager())


@pytest.mark.parametrize(
    "address",
    [
        PLACE,
        f"{PLACE}.git",
        "https://somebody:secret@example.org/people/minitron-trt.git",
        "git@example.org:people/minitron-trt.git",
        "ssh://git@example.org/people/minitron-trt",
        "ssh://git@example.org:2222/people/minitron-trt.git",
        "http://example.org/people/minitron-trt/",
    ],
)
def test_links_of_the_page_lead_to_files_of_the_repository(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = metadata_at(address, monkeypatch).core
    links = re.findall(r"\]\(([^)]+)\)", core.readme)
    own = [link for link in links if link.startswith(PLACE)]
    paths = [Path(link.removeprefix(f"{PLACE}/blob/main/").partition("#")[0]) for link in own]

    assert core.urls["Source"] == PLACE
    assert [link for link in links if not link.startswith("https://")] == []
    assert paths != []
    assert [path for path in paths if not (ROOT / path).is_file()] == []


@pytest.mark.parametrize(
    "address", ["", "/srv/minitron-trt", "../minitron-trt", "file:///srv/minitron-trt"]
)
def test_where_the_repository_lies_nowhere_the_page_says_nothing_of_it(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = metadata_at(address, monkeypatch).core

    assert (core.urls, core.readme) == ({}, (ROOT / "README.md").read_text(encoding="utf-8"))


def test_every_page_can_be_printed(command: Command) -> None:
    listing = command("docs").stdout.splitlines()
    for page in pages()[1:]:
        name = str(page.relative_to(ROOT / "docs")).removesuffix(".md")
        result = command("docs", name)

        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout.strip() == page.read_text(encoding="utf-8").strip()
        assert [line.split()[0] for line in listing].count(name) == 1
    assert command("docs", "grafana.json").stdout.startswith("{")


def test_a_page_that_is_not_there_is_an_error_of_one_line(command: Command) -> None:
    result = command("docs", "servin")

    assert (result.exit_code, result.stderr) == (
        2,
        "error: there is no page 'servin'; did you mean 'serving'?; see minitron-trt docs\n",
    )
