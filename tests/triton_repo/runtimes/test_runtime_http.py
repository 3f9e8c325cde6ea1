"""tensorrt_llm over HTTP: each of its tensors says there what it says over gRPC."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tests.patience import PATIENCE_S
from tests.triton_repo.runtimes.conftest import RECIPE
from tests.triton_repo.runtimes.runtime_calls import (
    MODEL,
    Runtime,
    inputs_of,
    prompt,
    serve,
)

from minitron_trt.samples import NAMES
from minitron_trt.triton_repo.contract.runtime_tensors import tensorrt_llm
from minitron_trt.triton_repo.contract.tensors import ElementTypes
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

pytestmark = pytest.mark.server

IDS = [5, 60, 300, 44, 9]
WORDS = np.array([[[44, 7, 8], [1, 3, -1]]], np.int32)
BIAS = (np.arange(1024, dtype=np.float32) % 7)[None]
ONES = np.ones((1, 1), np.int32)
INPUTS: dict[str, Any] = {
    # Of TensorRT-LLM's encoder-decoder models; other clients send them to any model.
    **{"decoder_input_ids": ONES, "decoder_input_lengths": 1},
    **{"end_id": 3, "pad_id": 3, "min_tokens": 2, "seed": 11, "stream_id": 4, "beam_width": 1},
    **{"temperature": 30.0, "runtime_top_k": 40, "runtime_top_p": 0.9, "len_penalty": 1.0},
    **{"repetition_penalty": 3.0, "presence_penalty": 9.0, "frequency_penalty": 9.0},
    **{"runtime_top_p_min": 0.0, "runtime_top_p_decay": 1.0, "runtime_top_p_reset_ids": -1},
    **{"early_stopping": False, "beam_search_diversity_rate": 0.0, "num_return_sequences": 1},
    **{"stop_words_list": WORDS, "bad_words_list": WORDS, "embedding_bias": BIAS},
    **{"return_log_probs": True, "return_num_input_tokens": True},
    **{"return_num_output_tokens": True, "return_context_logits": True},
    **{"return_generation_logits": True, "exclude_input_in_output": True, "streaming": False},
}
TABLE = np.ones((1, 1, 1), np.float16)
LACKING: dict[str, Any] = {
    **{"lora_task_id": 1, "lora_weights": TABLE, "lora_config": np.ones((1, 1, 3), np.int32)},
    **{"prompt_embedding_table": TABLE, "prompt_table_extra_ids": 1, "prompt_vocab_size": 1},
    **{"context_phase_params": np.ones((1, 1), np.uint8)},
    **{"guided_decoding_guide_type": "json", "guided_decoding_guide": "{}"},
    **{f"lookahead_{n}": 1 for n in ("window_size", "ngram_size", "verification_set_size")},
    **{f"retention_token_range_{n}": ONES for n in ("starts", "ends", "priorities")},
    **{"retention_token_range_durations_ms": ONES, "retention_decode_priority": ONES},
    **{"retention_decode_duration_ms": ONES},
    **{"draft_logits": np.ones((1, 1, 1), np.float32)},
    **{"draft_acceptance_threshold": np.ones((1, 1), np.float32)},
}


@pytest.fixture(scope="module")
def nemotron(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """A server of the other sample, which answers in one response too."""
    recipe = ServingRecipe(**RECIPE, decoupled=False)
    with serve(tmp_path_factory.mktemp("http"), recipe, "solar-nemotron") as served:
        yield served


@pytest.fixture(params=["single", "nemotron"], ids=NAMES)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    """A server of each sample."""
    found: Runtime = request.getfixturevalue(request.param)
    return found


def over_grpc(runtime: Runtime, **inputs: Any) -> dict[str, Any]:
    """Return the values of every output."""
    with grpc.InferenceServerClient(runtime.url) as client:
        result = client.infer(MODEL, inputs_of(inputs), client_timeout=PATIENCE_S)
        names = [output.name for output in result.get_response().outputs]
        return {name: _plain(result.as_numpy(name)) for name in names}


def over_http(runtime: Runtime, **inputs: Any) -> dict[str, Any]:
    """Return the values of every output; an HTTPError is what the server refuses."""
    tensors = [
        {
            "name": tensor.name(),
            "shape": list(tensor.shape()),
            "datatype": tensor.datatype(),
            "data": _plain(np.array(value) if not isinstance(value, np.ndarray) else value),
        }
        for tensor, value in zip(inputs_of(inputs), inputs.values(), strict=True)
    ]
    request = urllib.request.Request(
        f"{runtime.http_url}/v2/models/{MODEL}/infer", json.dumps({"inputs": tensors}).encode()
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        outputs = json.loads(answer.read())["outputs"]
    return {output["name"]: output["data"] for output in outputs}


def _plain(array: Any) -> list[Any]:
    values = np.asarray(array).reshape(-1).tolist()
    return [value.decode() if isinstance(value, bytes) else value for value in values]


@pytest.mark.parametrize("name", [None, *INPUTS])
def test_a_tensor_says_over_http_what_it_says_over_grpc(runtime: Runtime, name: str | None) -> None:
    given = {**prompt(IDS, 8), **({} if name is None else {name: INPUTS[name]})}
    if name in ("seed", "temperature"):
        given |= {"runtime_top_k": 40, "temperature": 30.0}
    found = over_http(runtime, **given)

    assert found == over_grpc(runtime, **given)
    assert len(found["output_ids"]) == found["sequence_length"][0] > 0


@pytest.mark.parametrize("name", LACKING)
def test_what_the_reference_runtime_lacks_is_refused_by_name(runtime: Runtime, name: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        over_http(runtime, **prompt(IDS, 8), **{name: LACKING[name]})

    assert name in caught.value.read().decode()
    # Triton takes numbers of 16 bits as binary data only.
    assert caught.value.code == (400 if LACKING[name] is TABLE else 501)


def test_times_come_over_http(runtime: Runtime) -> None:
    found = over_http(runtime, **prompt(IDS, 8), return_perf_metrics=True)
    times = [found[f"{n}_time_ns"][0] for n in ("arrival", "first_scheduled", "last_token")]

    assert times == sorted(times)


def test_a_draft_changes_no_answer(runtime: Runtime) -> None:
    plain = over_http(runtime, **prompt(IDS, 8))
    answer = plain["output_ids"][len(IDS) :]
    draft = np.array([[*answer[:3], (answer[3] + 1) % 512]], np.int32)
    found = over_http(runtime, **prompt(IDS, 8), draft_input_ids=draft, return_perf_metrics=True)

    assert found["output_ids"] == plain["output_ids"]
    assert found["total_accepted_draft_tokens"] == [3]
    assert found["total_draft_tokens"] == [4]
    assert found["acceptance_rate"] == [0.75]


def test_a_request_is_stopped_over_http(runtime: Runtime) -> None:
    assert over_http(runtime, **prompt(IDS, 8), stop=True, stream_id=5) == {}


def test_every_input_of_the_contract_goes_over_http() -> None:
    signature = tensorrt_llm(ElementTypes(), reports_streams=True)
    others = {*prompt(IDS, 8), "return_perf_metrics", "stop", "draft_input_ids"}

    assert {tensor.name for tensor in signature.inputs} == {*INPUTS, *LACKING, *others}
