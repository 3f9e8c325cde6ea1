"""Of a YAML file numbers and aliases are bounded, and no ordinary file is refused for it."""

from __future__ import annotations

import base64

import pytest
import yaml

from minitron_trt.yaml_bounds import check_bounds


@pytest.mark.parametrize(
    "word", ["1" + ":1" * 1000, "0x" + "f" * 1000, "0b" + "1" * 1000, "-" + "1_" * 1000, "1" * 1001]
)
def test_a_long_number_is_refused(word: str) -> None:
    with pytest.raises(yaml.YAMLError, match=f"a number of {len(word)} characters"):
        check_bounds(f"a: {word}")


@pytest.mark.parametrize(
    "word",
    [base64.b64encode(b"\xd0\xff" * 1000).decode(), "1f8b" * 500, "1,2," * 500, f"'{'1' * 2000}'"],
    ids=["base64", "hex", "list", "quoted"],
)
def test_what_begins_with_a_digit_may_be_no_number(word: str) -> None:
    check_bounds(f"a: {word}")


def test_ordinary_aliases_are_taken() -> None:
    check_bounds("a: &a {b: 1}\nc: *a\nd: {<<: *a}\ne: [*a, *a]\n")
