"""What a model declares decides what is sent to it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import pytest

from minitron_trt.clients.aio import AsyncClient
from minitron_trt.clients.client import Client
from minitron_trt.clients.messages import GenerateRequest
from minitron_trt.clients.model_interface import TEXT_MODEL, ModelInterface
from minitron_trt.errors import RefusedError

if TYPE_CHECKING:
    from tests.clients.conftest import Ask, TritonDouble

PROMPT: Final = {"text_input": ("BYTES", (-1, 1)), "max_tokens": ("INT32", (-1, 1))}
IDS: Final = {
    "input_ids": ("INT32", (-1, -1)),
    "input_lengths": ("INT32", (-1, 1)),
    "request_output_len": ("INT32", (-1, 1)),
    "runtime_top_k": ("INT32", (-1, 1)),
    "streaming": ("BOOL", (-1, 1)),
}
LLM_API: Final = {
    "text_input": ("BYTES", (-1,)),
    "streaming": ("BOOL", (1,)),
    "sampling_param_max_tokens": ("INT32", (1,)),
    "sampling_param_top_k": ("INT32", (1,)),
    "sampling_param_stop": ("BYTES", (-1,)),
    "return_finish_reason": ("BOOL", (1,)),
}
DYNAMO: Final = {"text_input": ("BYTES", (1,)), "streaming": ("BOOL", (1,))}


def interface(inputs: Mapping[str, tuple[str, tuple[int, ...]]], **more: Any) -> ModelInterface:
    outputs = ("text_output", "finish_reason", "output_ids", "sequence_length", "num_input_tokens")
    return ModelInterface.of_metadata(inputs, outputs, **{"is_triton": True, **more})


@pytest.mark.parametrize(
    ("inputs", "options", "sent"),
    [
        (
            PROMPT,
            {"text_input": "hi"},
            {"text_input": ((1, 1), "hi"), "max_tokens": ((1, 1), 64)},
        ),
        (
            IDS,
            {"input_ids": [5, 6, 7], "max_tokens": 9, "top_k": 2},
            {
                "input_ids": ((1, 3), (5, 6, 7)),
                "input_lengths": ((1, 1), 3),
                "request_output_len": ((1, 1), 9),
                "runtime_top_k": ((1, 1), 2),
                "streaming": ((1, 1), True),
            },
        ),
        (
            LLM_API,
            {"text_input": "hi", "max_tokens": 9, "top_k": 2, "stop_words": ["a", "b"]},
            {
                "text_input": ((1,), "hi"),
                "sampling_param_max_tokens": ((1,), 9),
                "sampling_param_top_k": ((1,), 2),
                "sampling_param_stop": ((2,), ("a", "b")),
                "streaming": ((1,), True),
                "return_finish_reason": ((1,), True),
            },
        ),
        (
            DYNAMO,
            {"text_input": "hi", "stream": False},
            {"text_input": ((1,), "hi"), "streaming": ((1,), False)},
        ),
    ],
    ids=["two inputs", "token ids", "llmapi", "dynamo"],
)
def test_only_what_is_declared_is_sent_in_the_models_own_names(
    inputs: Any, options: dict[str, Any], sent: dict[str, Any]
) -> None:
    call = interface(inputs).call(GenerateRequest(**options))

    assert {each.name: (each.shape, each.value) for each in call.inputs} == sent


@pytest.mark.parametrize(
    ("inputs", "required", "options", "field", "words"),
    [
        (PROMPT, (), {"text_input": "x", "top_k": 2}, "top_k", "has no input top_k; leave it out"),
        (DYNAMO, (), {"text_input": "x", "max_tokens": 9}, "max_tokens", "has no input max_tokens"),
        (PROMPT, (), {"input_ids": [1]}, "input_ids", "has no input input_ids"),
        (IDS, (), {"text_input": "x"}, "text_input", "takes token ids and no text; give input_ids"),
        (IDS, (), {"input_ids": [1], "stop_words": ["a"]}, "stop_words", "has no input stop_words"),
        (
            {"image": ("FP32", (1,))},
            (),
            {"text_input": "x"},
            "text_input",
            "takes neither text_input nor input_ids but image",
        ),
        (
            {**PROMPT, "image": ("FP32", (1,))},
            ("image",),
            {"text_input": "x"},
            "image",
            "needs the input image",
        ),
    ],
    ids=["lacks", "lacks a limit", "ids to text", "text to ids", "words", "no text", "required"],
)
def test_what_the_model_lacks_is_refused_by_its_name(
    inputs: Any, required: tuple[str, ...], options: dict[str, Any], field: str, words: str
) -> None:
    request = GenerateRequest(**options, model="some")

    with pytest.raises(RefusedError) as caught:
        interface(inputs, required=required).call(request)

    assert caught.value.field == field
    assert str(caught.value).startswith("the model 'some' ")
    assert words in str(caught.value)


def test_a_model_without_decoupling_is_asked_for_one_response() -> None:
    request = GenerateRequest("hi")

    streams = [interface(LLM_API, is_decoupled=each).call(request).streams for each in (True, None)]
    one = interface(LLM_API, is_decoupled=False).call(request)

    assert (streams, one.streams) == ([True, True], False)
    assert {each.name: each.value for each in one.inputs}["streaming"] is False


def test_only_declared_outputs_are_asked_for() -> None:
    request = GenerateRequest("hi", return_log_probs=None, num_return_sequences=None)

    assert interface(PROMPT).call(request).outputs == ("text_output", "finish_reason")
    assert TEXT_MODEL.call(request).outputs == ("text_output",)
    assert interface(IDS).call(GenerateRequest(input_ids=[1])).outputs == (
        "output_ids",
        "sequence_length",
        "finish_reason",
    )


def test_tokens_are_counted_where_the_model_can() -> None:
    counts = {"return_num_input_tokens": ("BOOL", (-1, 1))}
    request = GenerateRequest("hi", count_tokens=True)

    call = interface({**PROMPT, **counts}).call(request)

    assert {each.name: each.value for each in call.inputs}["return_num_input_tokens"] is True
    assert call.outputs == ("text_output", "finish_reason", "num_input_tokens")
    assert interface(PROMPT).call(request).outputs == ("text_output", "finish_reason")


def test_a_value_that_the_declared_type_cannot_hold_is_refused(triton_grpc: TritonDouble) -> None:
    triton_grpc.model.inputs["seed"] = "INT32"

    with Client.connect(triton_grpc.url) as client, pytest.raises(RefusedError) as caught:
        client.generate("say hi", seed=2**40)

    assert caught.value.field == "seed"
    assert "seed is of type INT32, which cannot hold (1099511627776,)" in str(caught.value)


def test_a_refusal_by_the_interface_reaches_no_server(triton: TritonDouble, ask: Ask) -> None:
    del triton.model.inputs["top_k"]

    with pytest.raises(RefusedError, match="'ensemble' has no input top_k"):
        ask(triton.url, GenerateRequest("say hi", top_k=3))
    assert triton.requests == []


def test_a_repository_without_decoupling_answers_at_once(triton: TritonDouble, ask: Ask) -> None:
    triton.model.decoupled = False

    assert "".join(ask(triton.url, GenerateRequest("say one two"))) == "one two"
    assert triton.requests[0]["stream"] in (False, b"\0")


def test_what_a_model_declares_is_asked_once(triton: TritonDouble) -> None:
    with Client.connect(triton.url) as client:
        for _ in range(3):
            client.generate("say hi")

    assert triton.questions == 2


def test_both_twins_say_what_a_model_takes(triton: TritonDouble) -> None:
    async def ask() -> ModelInterface:
        async with AsyncClient.connect(triton.url) as client:
            return await client.interface("ensemble")

    with Client.connect(triton.url) as client:
        told = client.interface("ensemble")
        with pytest.raises(RefusedError):
            client.interface("nonsense")

    assert told == asyncio.run(ask())
    assert told.takes_text
    assert (told.takes("top_k"), told.takes("input_ids")) == (True, False)


def test_a_server_that_tells_nothing_is_taken_for_tensorrt_llms(
    triton: TritonDouble, ask: Ask
) -> None:
    triton.model.tells_metadata = False
    triton.model.inputs.clear()

    assert ask(triton.url, GenerateRequest("say hi", top_k=3)) == ["hi"]


def test_a_service_of_kserve_answers_at_once(kserve: TritonDouble, ask: Ask) -> None:
    """It has no configuration to tell, no streams and over HTTP no generate."""
    assert ask(kserve.url, GenerateRequest("say one two")) == ["one two"]
    assert set(kserve.requests[0]) == {"id", "model", "text_input", "stream"}
    with pytest.raises(RefusedError, match="'ensemble' has no input max_tokens"):
        ask(kserve.url, GenerateRequest("say one two", max_tokens=2))
    with pytest.raises(RefusedError, match="broke"):
        ask(kserve.url, GenerateRequest("fail one two"))


def test_a_model_of_token_ids_answers_with_ids(triton: TritonDouble) -> None:
    triton.model.inputs = {name: datatype for name, (datatype, _) in IDS.items()}
    triton.model.required = ("input_lengths", "request_output_len")
    triton.model.outputs = ("output_ids", "sequence_length")

    with Client.connect(triton.url) as client:
        completion = client.generate(input_ids=[7, 8], model="tensorrt_llm")

    assert (completion.text, completion.token_ids, completion.completion_tokens) == ("", [7, 8], 2)


def test_the_prompts_ids_are_left_out_of_an_answer_unless_wished_for() -> None:
    inputs = {**IDS, "exclude_input_in_output": ("BOOL", (-1, 1))}

    for wish in (None, False):
        request = GenerateRequest(input_ids=[1], exclude_input_in_output=wish)
        sent = {each.name: each.value for each in interface(inputs).call(request).inputs}

        assert sent["exclude_input_in_output"] is (wish is None)
