"""Models that are not decoupled answer a text request once, and refuse what takes more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as http
from tests.triton_repo.text_calls import RefusalError, ask

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving.runners import running_server
from minitron_trt.triton_repo.serving.server_options import Endpoints, ServerOptions, free_endpoints
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

pytestmark = pytest.mark.server

GIVEN: dict[str, Any] = {"text_input": "Complete the paragraph: our solar system is"}
FRONT_MODELS = ("ensemble", "tensorrt_llm_bls")


@pytest.fixture(scope="module")
def endpoints(
    checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Endpoints]:
    """Serve the Llama sample with models that send one response."""
    folder = tmp_path_factory.mktemp("one") / "repository"
    emit_repository(checkpoint.folder, folder, ServingRecipe(max_batch_size=4, decoupled=False))
    with running_server(
        folder, ServerOptions(free_endpoints(), drain_s=3), timeout_s=600
    ) as server:
        yield server.endpoints


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("model", FRONT_MODELS)
def test_an_answer_is_one_response(endpoints: Endpoints, model: str, protocol: str) -> None:
    whole = ask(endpoints, protocol, model, max_tokens=30, **GIVEN)
    word = whole.text[20:29]
    cut = ask(endpoints, protocol, model, max_tokens=30, stop_words=[word], **GIVEN)

    assert (len(whole.responses), whole.finish_reason) == (1, "length")
    assert (cut.text, cut.finish_reason) == (whole.text.split(word)[0], "stop")


@pytest.mark.parametrize("model", FRONT_MODELS)
def test_plain_infer_works(endpoints: Endpoints, model: str) -> None:
    """Which decoupled models cannot do over HTTP."""
    text = http.InferInput("text_input", [1, 1], "BYTES")
    count = http.InferInput("max_tokens", [1, 1], "INT32")
    text.set_data_from_numpy(np.array([["Hello"]], np.object_))
    count.set_data_from_numpy(np.array([[3]], np.int32))
    with http.InferenceServerClient(endpoints.http_url.removeprefix("http://")) as client:
        answer = client.infer(model, [text, count])

    assert answer.as_numpy("text_output").size == 1


@pytest.mark.parametrize("model", FRONT_MODELS)
@pytest.mark.parametrize("inputs", [{"stream": True}, {"num_return_sequences": 2}], ids=str)
def test_more_than_one_response_is_refused(
    endpoints: Endpoints, model: str, inputs: dict[str, Any]
) -> None:
    with pytest.raises(RefusalError, match=r"stream|num_return_sequences"):
        ask(endpoints, "grpc", model, max_tokens=3, **GIVEN, **inputs)
