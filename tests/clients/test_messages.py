"""What a request may hold."""

from __future__ import annotations

from typing import Any

import pytest

from minitron_trt.clients.messages import TENSORS, GenerateRequest
from minitron_trt.errors import UsageError


def test_only_what_is_set_is_sent() -> None:
    assert GenerateRequest("hi").inputs() == {"text_input": "hi", "stream": True}


def test_every_value_is_sent_under_its_tensors_name() -> None:
    examples = {"INT32": -1, "UINT64": 2**64 - 1, "FP32": 0.0, "BOOL": False, "BYTES": "hi"}
    values: dict[str, Any] = {name: examples[datatype] for name, datatype in TENSORS.items()}
    values |= {
        "stop_words": ("a", "b"),
        "bad_words": ("c",),
        "embedding_bias_words": ("d",),
        "embedding_bias_weights": (1, -0.5),
    }

    inputs = GenerateRequest(**values).inputs()

    assert inputs == values
    assert list(inputs) == list(values)


@pytest.mark.parametrize(
    ("wishes", "outputs"),
    [
        ({}, []),
        ({"num_return_sequences": 2}, ["sequence_index"]),
        ({"beam_width": 2, "num_return_sequences": 1}, ["sequence_index"]),
        ({"return_log_probs": True}, ["cum_log_probs", "output_log_probs"]),
        ({"return_log_probs": False, "return_num_input_tokens": True}, ["num_input_tokens"]),
    ],
)
def test_only_the_outputs_that_are_wished_for_are_asked_for(
    wishes: dict[str, Any], outputs: list[str]
) -> None:
    assert GenerateRequest("hi", **wishes).outputs() == tuple(outputs)


def test_every_request_has_an_id_of_its_own() -> None:
    assert len({GenerateRequest("hi").request_id for _ in range(3)}) == 3


def test_words_may_come_as_a_list() -> None:
    assert GenerateRequest("hi", stop_words=["a"]).stop_words == ("a",)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("text_input", None, "None; expected a string"),
        ("text_input", b"hi", "b'hi'; expected a string"),
        ("text_input", "\udcff", "'\\udcff'; expected text that UTF-8 can carry"),
        ("max_tokens", 1.5, "1.5; expected a whole number from -2147483648 to 2147483647"),
        ("max_tokens", True, "True; expected a number"),
        ("top_k", 2**31, "2147483648; expected a whole number from -2147483648 to 2147483647"),
        ("seed", -1, "-1; expected a whole number from 0 to 18446744073709551615"),
        ("temperature", "hot", "'hot'; expected a finite number"),
        ("temperature", float("nan"), "nan; expected a finite number"),
        ("top_p", 1e39, "1e+39; expected a finite number"),
        ("stop_words", "END", "'END'; expected a list of strings"),
        ("bad_words", (1,), "1; expected a string"),
        ("stream", 1, "1; expected true or false"),
        ("model", "", "''; expected the name of a model"),
    ],
)
def test_what_no_tensor_can_hold_is_refused(field: str, value: Any, expected: str) -> None:
    values = {"text_input": "hi", field: value}

    with pytest.raises(UsageError) as caught:
        GenerateRequest(**values)

    assert str(caught.value) == f"{field} is {expected}"


@pytest.mark.parametrize(
    "values", [{"max_tokens": -5}, {"temperature": -1.0}, {"top_p": 7.0}, {"text_input": ""}]
)
def test_ranges_are_left_to_the_server(values: dict[str, Any]) -> None:
    assert GenerateRequest(**{"text_input": "hi", **values}).inputs().items() >= values.items()
