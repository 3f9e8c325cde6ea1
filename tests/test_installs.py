"""Lower bounds are versions that were run: `make test-oldest` runs them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parent.parent
# Which extras that environment has, and what cannot be had there as old as its bound.
EXTRAS: Final = ("gateway", "quantize", "reference", "server")
NEWER: Final = {"torch": "builds for CPUs that are as old are not on PyPI"}


def named(requirement: str) -> tuple[str, str]:
    """Return the name of a requirement and what follows it."""
    match = re.match(r"([\w.-]+)(?:\[[^]]*\])?(.*)", requirement)
    assert match is not None
    return match[1].lower().replace("_", "-"), match[2]


def bounds() -> list[tuple[str, str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    groups = [project["dependencies"], *(extras[name] for name in EXTRAS)]
    parsed = {named(requirement) for group in groups for requirement in group}
    return sorted((name, rest.removeprefix(">=")) for name, rest in parsed if rest[:2] == ">=")


@pytest.fixture(scope="module")
def oldest() -> dict[str, str]:
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    pins = [named(line) for line in lines if not line.startswith("#")]
    return {name: rest.removeprefix("==") for name, rest in pins}


@pytest.mark.parametrize(("name", "bound"), bounds())
def test_a_lower_bound_is_a_version_that_was_run(
    name: str, bound: str, oldest: dict[str, str]
) -> None:
    if name in NEWER:
        pytest.skip(f"NOT TESTED with {name} {bound}: {NEWER[name]}")

    assert f"{oldest[name]}.".startswith(f"{bound}.")
