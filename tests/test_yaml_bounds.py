"""Of a YAML file numbers, aliases and tags are bounded, and no ordinary file is refused for it."""

from __future__ import annotations

import base64
from typing import Any

import pytest
import yaml

from minitron_trt.yaml_bounds import check_bounds


@pytest.mark.parametrize(
    "word", ["1" + ":1" * 1000, "0x" + "f" * 1000, "0b" + "1" * 1000, "-" + "1_" * 1000, "1" * 1001]
)
@pytest.mark.parametrize("form", ["{}", "!!int '{}'", "!!float {}"])
def test_a_long_number_is_refused(word: str, form: str) -> None:
    with pytest.raises(yaml.YAMLError, match=f"a number of {len(word)} characters"):
        check_bounds(f"a: {form.format(word)}")


@pytest.mark.parametrize("loader", [yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader)])
@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("bool", "many"),
        ("int", "''"),
        ("timestamp", "today"),
        ("float", "x"),
        ("bool", "{=: many}"),
    ],
)
def test_a_value_that_does_not_fit_its_tag_is_refused(tag: str, value: str, loader: Any) -> None:
    with pytest.raises(yaml.YAMLError, match=f"no {tag}"):
        check_bounds(f"a: !!{tag} {value}", loader=loader)


def test_values_that_fit_their_tags_are_taken() -> None:
    check_bounds(f"[!!int '5', !!float 1, !!bool yes, !!timestamp 2026-11-27, !!str {'1' * 2000}]")


@pytest.mark.parametrize(
    "word",
    [base64.b64encode(b"\xd0\xff" * 1000).decode(), "1f8b" * 500, "1,2," * 500, f"'{'1' * 2000}'"],
    ids=["base64", "hex", "list", "quoted"],
)
def test_what_begins_with_a_digit_may_be_no_number(word: str) -> None:
    check_bounds(f"a: {word}")


def test_ordinary_aliases_are_taken() -> None:
    check_bounds("a: &a {b: 1}\nc: *a\nd: {<<: *a}\ne: [*a, *a]\n")
