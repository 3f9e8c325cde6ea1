"""Clients that others wrote, unchanged: tritonclient's four, and the four of nvidia-pytriton.

The calls are the ones of their own documentation, and of the scripts beside TensorRT-LLM's models.
"""

from __future__ import annotations

import asyncio
import json
import queue
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.grpc.aio as grpc_aio
import tritonclient.http as http
import tritonclient.http.aio as http_aio
from numpy.typing import NDArray
from pytriton.client import (
    AsyncioDecoupledModelClient,
    AsyncioModelClient,
    DecoupledModelClient,
    ModelClient,
)
from pytriton.client.exceptions import PyTritonClientInferenceServerError
from tests.patience import PATIENCE_S
from tests.triton_repo.conftest import Served
from tests.triton_repo.output_shapes import EVERYTHING, TEXT_OUTPUTS, Sizes, expected_shapes
from tests.triton_repo.text_calls import ask
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from minitron_trt.samples import sample_folder
from minitron_trt.triton_repo.serving.server_options import Endpoints

pytestmark = [
    pytest.mark.server,
    # What pytriton says of its own settings whenever it connects over gRPC.
    pytest.mark.filterwarnings("ignore::pytriton.client.warnings.NotSupportedTimeoutWarning"),
]

PROMPT = "Complete the paragraph: our solar system is"
COUNT = 4
FRONT_MODELS = ("ensemble", "tensorrt_llm_bls")

PASSED_BY_HAND = {
    "input_ids": "INPUT_ID",
    "decoder_input_ids": "DECODER_INPUT_ID",
    "decoder_input_lengths": "REQUEST_DECODER_INPUT_LEN",
    "input_lengths": "REQUEST_INPUT_LEN",
    "request_output_len": "REQUEST_OUTPUT_LEN",
    "bad_words_list": "BAD_WORDS_IDS",
    "stop_words_list": "STOP_WORDS_IDS",
    "embedding_bias": "EMBEDDING_BIAS",
    "end_id": "OUT_END_ID",
    "pad_id": "OUT_PAD_ID",
}
"""From tensorrt_llm's inputs to preprocessing's outputs, all that a text model may have."""

Arrays = dict[str, NDArray[Any]]
Call = Callable[..., Any]


@pytest.fixture(params=FRONT_MODELS)
def model(request: pytest.FixtureRequest) -> str:
    """Return each text model."""
    return str(request.param)


@pytest.fixture(params=[True, False], ids=["streamed", "whole"])
def stream(request: pytest.FixtureRequest) -> bool:
    """Return whether the answer is to come in pieces."""
    return bool(request.param)


PLAIN_CLIENTS: dict[str, Any] = {
    "grpc": grpc,
    "grpc.aio": grpc_aio,
    "http": http,
    "http.aio": http_aio,
}
"""tritonclient's libraries, whose `infer` is for models that send one response."""


@pytest.fixture(params=PLAIN_CLIENTS)
def plain_call(request: pytest.FixtureRequest, one_response: Endpoints) -> Call:
    """Return each client's `infer`."""
    library = PLAIN_CLIENTS[request.param]
    protocol = grpc if request.param.startswith("grpc") else http
    url = address(getattr(one_response, f"{request.param.partition('.')[0]}_url"))

    def call(model: str, **arrays: NDArray[Any]) -> Any:
        if library is protocol:
            with library.InferenceServerClient(url) as client:
                return client.infer(model, wrapped(protocol, **arrays))

        async def run() -> Any:
            async with library.InferenceServerClient(url) as client:
                return await client.infer(model, wrapped(protocol, **arrays))

        return asyncio.run(asyncio.wait_for(run(), PATIENCE_S))

    return call


@pytest.fixture(params=["grpc", "http"])
def url(request: pytest.FixtureRequest, one_response: Endpoints) -> str:
    """Return each address of a server whose models send one response."""
    return str(getattr(one_response, f"{request.param}_url"))


def inputs_of(**more: Any) -> Arrays:
    """Return the inputs of one request, each with the batch axis."""
    values = {"text_input": PROMPT.encode(), "max_tokens": np.int32(COUNT), **more}
    return {
        name: np.array([[value]], np.object_ if isinstance(value, bytes) else None)
        for name, value in values.items()
    }


def tensors_of(library: Any, **more: Any) -> list[Any]:
    """Return the inputs of one request as tritonclient takes them."""
    return wrapped(library, **inputs_of(**more))


def wrapped(library: Any = grpc, **arrays: NDArray[Any]) -> list[Any]:
    """Return arrays as tritonclient takes them."""
    tensors = []
    for name, array in arrays.items():
        tensor = library.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    return tensors


def text_of(results: list[Any]) -> str:
    """Return the text as NVIDIA's end_to_end_grpc_client.py puts it together."""
    return "".join(result.as_numpy("text_output")[0].decode("utf-8") for result in results)


def expected_text(endpoints: Endpoints, model: str) -> str:
    """Return what the other tests of this server ask for."""
    return ask(endpoints, "grpc", model, text_input=PROMPT, max_tokens=COUNT).text


def address(url: str) -> str:
    """Return the address as tritonclient takes it."""
    return url.partition("://")[2]


def stream_of(
    endpoints: Endpoints, model: str, inputs: list[Any], *names: str, asynchronous: bool = False
) -> list[Any]:
    """Return the results of a stream.

    As end_to_end_grpc_client.py does: what came is read after the stream was closed.
    """
    outputs = [grpc.InferRequestedOutput(name) for name in names] or None
    url = address(endpoints.grpc_url)
    if asynchronous:
        return asyncio.run(asyncio.wait_for(_stream_of(url, model, inputs, outputs), PATIENCE_S))
    results: queue.Queue[Any] = queue.Queue()
    client = grpc.InferenceServerClient(url)
    client.start_stream(lambda result, error: results.put(error or result))
    client.async_stream_infer(model, inputs, outputs=outputs)
    client.stop_stream()
    return list(results.queue)


async def _stream_of(url: str, model: str, inputs: list[Any], outputs: Any) -> list[Any]:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": model, "inputs": inputs, "outputs": outputs}

    async with grpc_aio.InferenceServerClient(url) as client:
        return [error or result async for result, error in client.stream_infer(requests())]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["grpc", "grpc.aio"])
def test_a_stream_of_tritonclient_brings_every_piece(
    served: Served, model: str, stream: bool, asynchronous: bool
) -> None:
    inputs = tensors_of(grpc, stream=np.bool_(stream))
    results = stream_of(served.endpoints, model, inputs, "text_output", asynchronous=asynchronous)

    assert text_of(results) == expected_text(served.endpoints, model)
    assert len(results) == (COUNT if stream else 1)


def test_every_wish_of_upstreams_client_is_read_as_it_reads(served: Served, model: str) -> None:
    """Log probabilities, logits and what a request took, in each response of a stream."""
    wishes = ("log_probs", "context_logits", "generation_logits", "perf_metrics")
    inputs = {f"return_{name}": np.bool_(True) for name in wishes}
    wanted = tensors_of(
        grpc,
        stream=np.bool_(True),
        num_return_sequences=np.int32(2),
        beam_width=np.int32(1),
        temperature=np.float32(1.0),
        **inputs,
    )
    texts = ["", ""]
    for result in stream_of(served.endpoints, model, wanted):
        texts[result.as_numpy("sequence_index")[0][0]] += text_of([result])
        for name in ("kv_cache_alloc_new_blocks", "arrival_time_ns", "last_token_time_ns"):
            assert result.as_numpy(name)[0][0] > 0
        for name in ("kv_cache_reused_blocks", "acceptance_rate", "total_draft_tokens"):
            assert result.as_numpy(name)[0][0] == 0
        assert result.as_numpy("context_logits").ndim == 3
        assert result.as_numpy("output_log_probs").shape == (1, 1, 1)

    assert texts == [expected_text(served.endpoints, model)] * 2


def test_a_batch_of_prompts_is_split(served: Served, model: str, stream: bool) -> None:
    """As end_to_end_grpc_client.py does with --batch-inputs, each row with wishes of its own."""
    prompts, counts = (PROMPT, "Once upon a time"), (COUNT, 2 * COUNT)
    keep, stops = (True, False), ("never", "ever")
    arrays = {
        "text_input": np.array([[prompt.encode()] for prompt in prompts], np.object_),
        "max_tokens": np.array([[count] for count in counts], np.int32),
        "stop_words": np.array([[word.encode()] for word in stops], np.object_),
        "exclude_input_in_output": np.array([[value] for value in keep]),
        "stream": np.full((2, 1), stream),
    }
    results = stream_of(served.endpoints, model, wrapped(**arrays), "text_output", "batch_index")
    texts = ["", ""]
    for result in results:
        texts[result.as_numpy("batch_index")[0][0]] += text_of([result])

    assert texts == [
        ask(
            served.endpoints,
            "grpc",
            model,
            text_input=prompt,
            max_tokens=count,
            stop_words=stop,
            exclude_input_in_output=excluded or stream,
        ).text
        for prompt, count, stop, excluded in zip(prompts, counts, stops, keep, strict=True)
    ]
    assert len(results) > 6 if stream else len(results) == 2


def test_a_decoupled_client_of_pytriton_brings_every_piece(
    served: Served, model: str, stream: bool
) -> None:
    """It drops the response that is marked final, which has no text."""
    client = DecoupledModelClient(served.endpoints.grpc_url, model)
    try:
        inputs = inputs_of(stream=np.bool_(stream))
        pieces = [each["text_output"][0] for each in client.infer_batch(**inputs)]
        rows = {name: array[0] for name, array in inputs.items()}
        again = [each["text_output"] for each in client.infer_sample(**rows)]
    finally:
        client.close()

    assert again == pieces
    assert b"".join(pieces).decode() == expected_text(served.endpoints, model)


def test_an_asyncio_decoupled_client_of_pytriton_brings_every_piece(
    served: Served, model: str, stream: bool
) -> None:
    """Its infer_batch: infer_sample takes the first row of outputs that were not sent, too."""

    async def run() -> list[bytes]:
        async with AsyncioDecoupledModelClient(served.endpoints.grpc_url, model) as client:
            answers = client.infer_batch(**inputs_of(stream=np.bool_(stream)))
            pieces = [each["text_output"][0] async for each in answers]
            rows = {name: array[0] for name, array in inputs_of().items()}
            with pytest.raises(TypeError, match="subscriptable"):
                _ = [each async for each in client.infer_sample(**rows)]
            return pieces

    pieces = asyncio.run(asyncio.wait_for(run(), PATIENCE_S))

    assert b"".join(pieces).decode() == expected_text(served.endpoints, model)


def test_a_draft_model_is_refused_by_name(served: Served) -> None:
    """As end_to_end_grpc_client.py asks for one; of no draft tokens nothing is said."""
    model, drafts = "tensorrt_llm_bls", {"use_draft_logits": np.bool_(False)}
    asked = tensors_of(grpc, num_draft_tokens=np.int32(4), **drafts)
    (refused,) = stream_of(served.endpoints, model, asked)
    without = stream_of(
        served.endpoints, model, tensors_of(grpc, num_draft_tokens=np.int32(0), **drafts)
    )

    assert "num_draft_tokens needs a draft model" in str(refused)
    assert text_of(without) == expected_text(served.endpoints, model)


def test_plain_clients_are_told_that_a_model_is_decoupled(served: Served, model: str) -> None:
    with (
        http.InferenceServerClient(address(served.endpoints.http_url)) as client,
        pytest.raises(InferenceServerException, match="decoupled"),
    ):
        client.infer(model, tensors_of(http))
    with (
        ModelClient(served.endpoints.grpc_url, model) as client,
        pytest.raises(PyTritonClientInferenceServerError, match="DecoupledModelClient"),
    ):
        client.infer_batch(**inputs_of())


@pytest.fixture
def whole(one_response: Endpoints, model: str) -> str:
    """Return what a model says that sends one response."""
    return expected_text(one_response, model)


def test_a_plain_call_of_tritonclient_brings_the_text(
    plain_call: Call, model: str, whole: str
) -> None:
    assert text_of([plain_call(model, **inputs_of())]) == whole


def test_a_batch_of_prompts_needs_decoupled_models(plain_call: Call, model: str) -> None:
    arrays = {name: np.repeat(array, 2, axis=0) for name, array in inputs_of().items()}
    with pytest.raises(InferenceServerException, match=r"2 .*decoupled"):
        plain_call(model, **arrays)


def test_every_output_of_a_plain_call_has_upstreams_shape(plain_call: Call, model: str) -> None:
    wishes = {name: np.bool_(value) for name, value in EVERYTHING.items()}
    answer = plain_call(model, **inputs_of(end_id=np.int32(0), **wishes))
    vocab = json.loads((sample_folder("solar-llama") / "config.json").read_text())["vocab_size"]
    prompt = int(answer.as_numpy("num_input_tokens")[0][0])
    shapes = expected_shapes(TEXT_OUTPUTS, Sizes(prompt, vocab, tokens=COUNT))
    found = {name: answer.as_numpy(name) for name in shapes}

    # Which sequence a response is of is said where there are several, for which it needs a stream.
    assert (found.pop("batch_index"), found.pop("sequence_index")) == (None, None)
    assert {name: array.shape for name, array in found.items()} == {
        name: shapes[name] for name in found
    }


@pytest.mark.parametrize("asynchronous", [False, True], ids=["grpc", "grpc.aio"])
def test_a_stream_of_two_sequences_has_upstreams_shapes(
    served: Served, model: str, asynchronous: bool
) -> None:
    inputs = tensors_of(grpc, num_return_sequences=np.int32(2), stream=np.bool_(True))
    results = stream_of(served.endpoints, model, inputs, asynchronous=asynchronous)
    texts = ["", ""]
    for result in results:
        assert result.as_numpy("text_output").shape == (1,)
        assert result.as_numpy("sequence_index").shape == (1, 1)
        assert result.as_numpy("batch_index").tolist() == [[0]]
        texts[result.as_numpy("sequence_index")[0][0]] += text_of([result])

    assert texts == [expected_text(served.endpoints, model)] * 2


def test_a_client_of_pytriton_brings_the_text(url: str, model: str, whole: str) -> None:
    rows = {name: array[0] for name, array in inputs_of().items()}
    with ModelClient(url, model) as client:
        assert client.infer_batch(**inputs_of())["text_output"][0].decode() == whole
        assert client.infer_sample(**rows)["text_output"].decode() == whole


def test_an_asyncio_client_of_pytriton_brings_the_text(url: str, model: str, whole: str) -> None:
    async def run() -> Any:
        async with AsyncioModelClient(url, model) as client:
            return await client.infer_batch(**inputs_of())

    assert asyncio.run(run())["text_output"][0].decode() == whole


@pytest.mark.parametrize("excluded", [True, False])
def test_the_models_one_after_another_give_what_the_ensemble_gives(
    one_response: Endpoints, excluded: bool
) -> None:
    """As end_to_end_test.py does, with the prompt kept and without; an id is used again."""
    keep = {"exclude_input_in_output": np.bool_(excluded), "decoder_text_input": b"x"}
    with grpc.InferenceServerClient(address(one_response.grpc_url)) as client:
        whole = client.infer("ensemble", tensors_of(grpc, **keep), request_id="0")
        asked = inputs_of()
        prepared = client.infer(
            "preprocessing",
            wrapped(
                QUERY=asked["text_input"],
                REQUEST_OUTPUT_LEN=asked["max_tokens"],
                BAD_WORDS_DICT=np.array([[b""]], np.object_),
                STOP_WORDS_DICT=np.array([[b""]], np.object_),
                EXCLUDE_INPUT_IN_OUTPUT=np.array([[excluded]]),
            ),
            request_id="0",
        )
        answered = client.infer(
            "tensorrt_llm",
            wrapped(**{name: prepared.as_numpy(output) for name, output in PASSED_BY_HAND.items()}),
            request_id="0",
        )
        decoded = client.infer(
            "postprocessing",
            wrapped(
                TOKENS_BATCH=answered.as_numpy("output_ids"),
                SEQUENCE_LENGTH=answered.as_numpy("sequence_length"),
            ),
            request_id="0",
        )

    assert decoded.as_numpy("OUTPUT") == whole.as_numpy("text_output")
    assert text_of([whole]).startswith(PROMPT) is not excluded


def test_decoupled_clients_are_told_that_a_model_sends_one_response(
    one_response: Endpoints, model: str
) -> None:
    client = DecoupledModelClient(one_response.grpc_url, model)

    with pytest.raises(PyTritonClientInferenceServerError, match="Use ModelClient"):
        client.infer_batch(**inputs_of())
