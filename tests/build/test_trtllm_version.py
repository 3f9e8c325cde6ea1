"""TensorRT-LLM's version stands in one place; what cannot read it there says the same."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from minitron_trt.build.containers import CONTAINERS, TRTLLM_VERSION, container_for
from minitron_trt.build.recipe.flags import flags_of

ROOT = Path(__file__).parents[2]


def test_the_extra_installs_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert project["optional-dependencies"]["trtllm"] == [f"tensorrt-llm=={TRTLLM_VERSION}"]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/architecture.md"])
def test_the_pages_name_it(page: str) -> None:
    named = re.findall(r"TensorRT-LLM is ([\d.]+\d)", (ROOT / page).read_text())

    assert set(named) == {TRTLLM_VERSION}


def test_an_image_carries_it_and_its_flags_are_known() -> None:
    assert flags_of(TRTLLM_VERSION)
    assert container_for(TRTLLM_VERSION) == CONTAINERS[-1]


def test_the_example_of_an_image_is_the_newest(command: Callable[..., Result]) -> None:
    said = command("check", "--help").stdout

    assert set(re.findall(r"\b\d\d\.\d\d\b", said)) == {CONTAINERS[-1].tag}
