"""The same request of OpenAI's gives the same request to Triton as by Triton's own frontend.

The golden file has the tensors that `_create_trtllm_generate_request` of python/openai in
triton-inference-server/server made of each body (main of 2026-08-19, e1db8a6), with the echo tensor
`exclude_input_in_output` and 16 tokens where the body says nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pytest
from tests.gateway.conftest import INPUTS

from minitron_trt.chat_templates import PromptTemplate
from minitron_trt.clients.model_interface import InferInput, ModelInterface
from minitron_trt.gateway.openai_fields import ChatRequest, CompletionRequest, read_body
from minitron_trt.gateway.openai_requests import ModelTarget, asked_chat, asked_completion
from minitron_trt.triton_repo.contract.tensors import ElementTypes, text_model
from minitron_trt.triton_repo.models.minitron_models.chat_template import ChatTemplate

GOLDEN: Final = Path(__file__).parents[1] / "golden" / "triton_openai_frontend.json"
CASES: Final[list[dict[str, Any]]] = json.loads(GOLDEN.read_text(encoding="utf-8"))
_NAMES: Final = {"STRING": "BYTES"}


# A chat template that both sides have.
SOURCE: Final = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
TEMPLATE: Final = PromptTemplate(ChatTemplate(SOURCE, {}), SOURCE)


def interface() -> ModelInterface:
    """Return what our ensemble declares, as a server would say it."""
    signature = text_model(ElementTypes())
    return ModelInterface.of_metadata(
        {
            tensor.name: (_NAMES.get(tensor.type, tensor.type), (-1, *tensor.dims))
            for tensor in signature.inputs
        },
        [tensor.name for tensor in signature.outputs],
        is_decoupled=True,
        is_triton=True,
    )


def plain(sent: InferInput) -> dict[str, Any]:
    """Return a tensor as the golden file has them: numbers as their type can hold them."""
    values = list(sent.values)
    if sent.datatype == "FP32":
        values = np.asarray(values, np.float32).tolist()
    return {"datatype": sent.datatype, "shape": list(sent.shape), "values": values}


@pytest.mark.parametrize("case", CASES, ids=[json.dumps(case["body"])[14:70] for case in CASES])
def test_the_tensors_are_those_of_tritons_frontend(case: dict[str, Any]) -> None:
    target = ModelTarget("ensemble", interface(), 16, TEMPLATE)
    body = msgspec.json.encode(case["body"])
    is_chat = "messages" in case["body"]
    if is_chat:
        (request,) = asked_chat(read_body(body, ChatRequest), target).requests
    else:
        (request,) = asked_completion(read_body(body, CompletionRequest), target).requests
    sent = {each.name: plain(each) for each in target.interface.call(request).inputs}

    true = {"datatype": "BOOL", "shape": [1, 1], "values": [True]}
    # A stream always: without one Triton's ensemble does not notice that a client has left.
    expected = {**case["tensors"], "stream": true}
    if is_chat or case["body"].get("echo"):
        # Its chat sends this one only for an echo, which a chat cannot ask for. In a stream an echo
        # would change nothing: the gateway itself puts the prompt before the answer.
        expected["exclude_input_in_output"] = true
    assert sent == expected


def test_the_tables_double_declares_what_the_contract_does() -> None:
    declared = interface().inputs

    assert all(declared[name].datatype == kind for name, (kind, _) in INPUTS.items())


def test_an_answer_that_is_to_pass_its_end_has_its_least_tokens() -> None:
    fields = CompletionRequest(model="ensemble", prompt="a", max_tokens=9, ignore_eos=True)
    asked = asked_completion(fields, ModelTarget("ensemble", interface(), 128))

    assert (asked.requests[0].min_tokens, asked.requests[0].max_tokens) == (9, 9)
