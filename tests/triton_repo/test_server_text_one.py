"""Models that are not decoupled answer a text request once, and refuse what takes more."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tritonclient.http as http
from tests.triton_repo.output_shapes import (
    EVERYTHING,
    TEXT_OUTPUTS,
    Sizes,
    expected_shapes,
    sent_shapes,
)
from tests.triton_repo.text_calls import RefusalError, ask, tensors

from minitron_trt.triton_repo.serving.server_options import Endpoints

pytestmark = pytest.mark.server

GIVEN: dict[str, Any] = {"text_input": "Complete the paragraph: our solar system is"}
FRONT_MODELS = ("ensemble", "tensorrt_llm_bls")


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("model", FRONT_MODELS)
def test_an_answer_is_one_response(one_response: Endpoints, model: str, protocol: str) -> None:
    whole = ask(one_response, protocol, model, max_tokens=30, **GIVEN)
    word = whole.text[20:29]
    cut = ask(one_response, protocol, model, max_tokens=30, stop_words=[word], **GIVEN)

    assert (len(whole.responses), whole.finish_reason) == (1, "length")
    assert (cut.text, cut.finish_reason) == (whole.text.split(word)[0], "stop")


@pytest.mark.parametrize("model", FRONT_MODELS)
def test_outputs_have_the_shapes_that_upstream_sends(one_response: Endpoints, model: str) -> None:
    inputs = tensors({**GIVEN, "max_tokens": 3, "end_id": 0, **EVERYTHING})
    (shapes,) = sent_shapes(one_response, model, inputs)
    sizes = Sizes(prompt=shapes["context_logits"][1], vocab=1024, tokens=3)
    expected = expected_shapes(TEXT_OUTPUTS, sizes)

    assert shapes == {name: expected[name] for name in expected if not name.endswith("_index")}


@pytest.mark.parametrize("model", FRONT_MODELS)
def test_plain_infer_works(one_response: Endpoints, model: str) -> None:
    """Which decoupled models cannot do over HTTP."""
    text = http.InferInput("text_input", [1, 1], "BYTES")
    count = http.InferInput("max_tokens", [1, 1], "INT32")
    text.set_data_from_numpy(np.array([["Hello"]], np.object_))
    count.set_data_from_numpy(np.array([[3]], np.int32))
    with http.InferenceServerClient(one_response.http_url.removeprefix("http://")) as client:
        answer = client.infer(model, [text, count])

    assert answer.as_numpy("text_output").size == 1


@pytest.mark.parametrize("model", FRONT_MODELS)
@pytest.mark.parametrize("inputs", [{"stream": True}, {"num_return_sequences": 2}], ids=str)
def test_more_than_one_response_is_refused(
    one_response: Endpoints, model: str, inputs: dict[str, Any]
) -> None:
    with pytest.raises(RefusalError, match=r"stream|num_return_sequences"):
        ask(one_response, "grpc", model, max_tokens=3, **GIVEN, **inputs)
