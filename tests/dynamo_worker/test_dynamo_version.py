"""Dynamo's version stands in one place; what cannot read it there says the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from minitron_trt.deploy.dynamo_graph import DYNAMO_VERSION

ROOT = Path(__file__).parents[2]
NAMED = r"(?:ai-dynamo(?:-runtime)?(?:==| )|frontend and router )(\d[\d.]*\d)"


@pytest.mark.parametrize(
    "page", ["pyproject.toml", "Makefile", "README.md", "docs/how-to/dynamo.md"]
)
def test_the_files_name_it(page: str) -> None:
    assert set(re.findall(NAMED, (ROOT / page).read_text())) == {DYNAMO_VERSION}
