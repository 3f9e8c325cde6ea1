"""The runtime llmapi on a real tritonserver; a stand-in takes the place of TensorRT-LLM's LLM."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import tritonclient.grpc as grpc
import yaml
from tests.triton_repo.runtime_calls import Runtime, prompt
from transformers import AutoModelForCausalLM, AutoTokenizer

from minitron_trt.clients.client import Client
from minitron_trt.clients.messages import GenerateRequest
from minitron_trt.errors import RefusedError
from minitron_trt.samples import sample_folder
from minitron_trt.triton_repo.recipe import ServingRecipe
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving.launch import TritonServer
from minitron_trt.triton_repo.serving.runners import serving
from minitron_trt.triton_repo.serving.server_options import Endpoints, ServerOptions, free_endpoints

pytestmark = pytest.mark.server

PROMPT = "Complete the paragraph: our solar system is"
FAULT_ID = 7  # on which the stand-in fails
FRONT_MODELS = ("ensemble", "tensorrt_llm_bls")


@dataclass(frozen=True)
class Served:
    """A server of the runtime, and what transformers makes of PROMPT."""

    endpoints: Endpoints
    runtime: Runtime
    ids: list[int]
    answer: list[int]
    text: str


@contextlib.contextmanager
def serve(folder: Path, recipe: ServingRecipe) -> Iterator[TritonServer]:
    """Serve the sample with the stand-in where `import` finds it first, also in this process."""
    repository = folder / "repository"
    emit_repository(sample_folder("solar-llama"), repository, recipe)
    stand_in = Path(__file__).with_name("stand_in")
    shutil.copytree(stand_in / "tensorrt_llm", repository / "tensorrt_llm/1/tensorrt_llm")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(stand_in))
        with serving(
            repository, ServerOptions(free_endpoints()), "embedded", timeout_s=300
        ) as server:
            yield server


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server whose requests may ask for everything that this runtime knows."""
    settings = {
        "llm": {"sampler_type": "TRTLLMSampler", "guided_decoding_backend": "xgrammar"},
        "tensorrt_llm": {"exclude_input_in_output": "true"},
    }
    recipe = ServingRecipe(max_batch_size=2, max_queue_size=2, settings=settings)
    model = sample_folder("solar-llama")
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    network: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    with torch.inference_mode():
        ids = network.generate(**inputs, max_new_tokens=30, do_sample=False, pad_token_id=0)[0]
    answer = ids[length:].tolist()
    with serve(tmp_path_factory.mktemp("llmapi"), recipe) as server:
        runtime = Runtime(
            server.endpoints.grpc_url.removeprefix("grpc://"),
            f"http://127.0.0.1:{server.endpoints.metrics_port}/metrics",
            model,
            server.pid,
        )
        text = tokenizer.decode(answer, skip_special_tokens=True)
        yield Served(server.endpoints, runtime, ids[:length].tolist(), answer, text)


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    """A client of the text models."""
    with Client.connect(served.endpoints.grpc_url, timeout_s=60) as client:
        yield client


def joined(answers: list[dict[str, Any]]) -> list[int]:
    """Return the ids of every response, one after another."""
    return [i for answer in answers for i in answer["output_ids"].reshape(-1).tolist()]


def reasons(answers: list[dict[str, Any]]) -> list[str]:
    """Return the finish reasons that were sent."""
    return [a["finish_reason"].item().decode() for a in answers if "finish_reason" in a]


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("model", FRONT_MODELS)
def test_the_text_is_what_transformers_makes(
    client: Client, served: Served, model: str, stream: bool
) -> None:
    request = GenerateRequest(PROMPT, max_tokens=30, model=model, stream=stream)
    with client.stream(request) as pieces:
        found = list(pieces)

    assert "".join(found) == served.text
    assert (len(found) > 3) == stream


@pytest.mark.parametrize("model", FRONT_MODELS)
def test_text_ends_before_a_stop_word_of_several_tokens(
    client: Client, served: Served, model: str
) -> None:
    word = served.text[20:32]

    text = client.generate(GenerateRequest(PROMPT, max_tokens=30, model=model, stop_words=(word,)))

    assert text == served.text[:20]


def test_tokens_come_as_they_are_made_and_the_last_says_why(served: Served) -> None:
    answers = served.runtime.ask(served.ids, 5, streaming=True, stream_id=2**63 + 1)

    assert joined(answers) == served.answer[:5]
    assert [a["stream_id"].item() for a in answers] == [2**63 + 1] * len(answers)
    assert reasons(answers) == ["length"]


def test_words_of_several_ids_end_and_shun(served: Served) -> None:
    stop = [[[*served.answer[4:7]], [3, -1, -1]]]
    (stopped,) = served.runtime.ask(served.ids, 20, stop_words_list=[stop[0]])
    bad = [[[*served.answer[4:6]], [2, -1]]]
    (shunned,) = served.runtime.ask(served.ids, 7, bad_words_list=[bad[0]])

    assert joined([stopped]) == served.answer[:7]
    assert reasons([stopped]) == ["stop"]
    assert joined([shunned])[:5] == served.answer[:5]
    assert joined([shunned])[5] != served.answer[5]


def test_what_was_asked_for_comes_along(served: Served) -> None:
    counts = ("num_input_tokens", "num_output_tokens")
    wishes: dict[str, Any] = {
        f"return_{name}": True
        for name in ("log_probs", "context_logits", "generation_logits", "perf_metrics", *counts)
    }
    (answer,) = served.runtime.ask(served.ids, 4, **wishes)

    assert answer["output_log_probs"].shape == (1, 1, 4)
    assert answer["cum_log_probs"].item() == pytest.approx(answer["output_log_probs"].sum())
    assert answer["context_logits"].argmax(-1)[0, -1] == served.answer[0]
    assert answer["generation_logits"].argmax(-1)[0, 0].tolist() == served.answer[:4]
    assert [answer[name].item() for name in counts] == [len(served.ids), 4]
    assert answer["kv_cache_alloc_total_blocks"].item() == 3
    assert answer["last_token_time_ns"].item() > answer["arrival_time_ns"].item() > 0


def test_without_wishes_nothing_comes_but_tokens(served: Served) -> None:
    (answer,) = served.runtime.ask(served.ids, 2, exclude_input_in_output=False)

    assert answer.keys() == {"output_ids", "sequence_length", "finish_reason"}
    assert joined([answer]) == [*served.ids, *served.answer[:2]]


def test_several_sequences_are_told_apart(served: Served) -> None:
    answers = served.runtime.ask(
        served.ids, 6, num_return_sequences=3, temperature=2.0, runtime_top_k=20, seed=4
    )

    assert [a["sequence_index"].item() for a in answers] == [0, 1, 2]
    assert [a["batch_index"].item() for a in answers] == [0, 0, 0]
    assert len({tuple(joined([a])) for a in answers}) > 1


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"beam_width": 2}, "beam_width is 2"),
        ({"lora_task_id": 1}, "lora_task_id"),
        ({"retention_decode_priority": 1}, "retention_decode_priority"),
        ({"runtime_top_p": 1.5}, "top_p=1.5"),
        ({"num_return_sequences": 2}, "does not allow multiple returns"),
        ({"guided_decoding_guide_type": "haiku"}, "'haiku'; expected one of json, json_schema"),
        ({"guided_decoding_guide_type": "regex"}, "a regex guide needs its text"),
        (
            {"guided_decoding_guide_type": "regex", "guided_decoding_guide": "[ab]+"},
            r"does not guide: GuidedDecodingParams\(json=None, regex='\[ab\]\+'",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_it_cannot_do_is_refused_by_name(
    served: Served, inputs: dict[str, Any], words: str
) -> None:
    with pytest.raises(grpc.InferenceServerException, match=words):
        served.runtime.ask(served.ids, 4, **inputs)


def test_a_fault_ends_its_request_alone(served: Served) -> None:
    with pytest.raises(grpc.InferenceServerException, match="RuntimeError: the stand-in was asked"):
        served.runtime.ask([FAULT_ID], 4)

    assert joined(served.runtime.ask(served.ids, 3)) == served.answer[:3]


LONG = {"temperature": 1.0, "runtime_top_k": 50, "streaming": True}


def active(served: Served) -> int:
    """Return how many requests the model works on, from its Prometheus metric."""
    import urllib.request

    with urllib.request.urlopen(served.runtime.metrics_url, timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    (found,) = (line for line in lines if 'request_type="active"' in line)
    return int(float(found.rpartition(" ")[2]))


def wait_until(served: Served, count: int) -> None:
    """Fail unless so many requests run within a time in which no long one would have ended."""
    deadline = time.monotonic() + 5
    while active(served) != count and time.monotonic() < deadline:
        time.sleep(0.02)
    assert active(served) == count


def test_leaving_a_stream_ends_it(served: Served) -> None:
    with served.runtime.open(**prompt(served.ids, 1900), **LONG) as answers:
        answers.get(timeout=30)
        assert active(served) == 1

    wait_until(served, 0)


@pytest.mark.parametrize("by", ["request_id", "stream_id"])
def test_stop_ends_the_request_that_it_names(served: Served, by: str) -> None:
    name: dict[str, Any] = {by: "mine" if by == "request_id" else 77}
    with served.runtime.open(**prompt(served.ids, 1900), **LONG, **name) as answers:
        answers.get(timeout=30)
        assert served.runtime.ask([1], 1, stop=True, **name) == []

        wait_until(served, 0)


def test_time_is_up_when_the_client_says_so(served: Served) -> None:
    answers = served.runtime.ask(served.ids, 1900, **LONG, timeout_us=400_000)

    assert reasons(answers) == ["timeout"]
    assert len(joined(answers)) < 1900


def test_too_many_requests_are_refused_and_the_others_go_on(served: Served) -> None:
    with (
        served.runtime.open(**prompt(served.ids, 1900), **LONG),
        served.runtime.open(**prompt(served.ids, 1900), **LONG),
        served.runtime.open(**prompt(served.ids, 1900), **LONG),
        served.runtime.open(**prompt(served.ids, 1900), **LONG) as last,
    ):
        last.get(timeout=30)
        wait_until(served, 4)
        with pytest.raises(grpc.InferenceServerException, match="4 requests are running"):
            served.runtime.ask(served.ids, 1)

    wait_until(served, 0)
    assert joined(served.runtime.ask(served.ids, 3)) == served.answer[:3]


def test_without_streams_one_response_answers_and_more_are_refused(tmp_path: Path) -> None:
    with (
        serve(tmp_path, ServingRecipe(decoupled=False, bls_instances=1)) as server,
        Client.connect(server.endpoints.grpc_url, timeout_s=60) as client,
    ):
        url = server.endpoints.grpc_url.removeprefix("grpc://")
        runtime = Runtime(url, "", tmp_path, server.pid)
        assert joined(runtime.ask([5, 6], 3))[:2] == [5, 6]
        for inputs, words in (
            ({"streaming": True}, "the model is not decoupled"),
            ({"num_return_sequences": 2, "runtime_top_k": 5}, "the model is not decoupled"),
            ({"repetition_penalty": 1.2}, "sampler_type: TRTLLMSampler"),
            ({"bad_words_list": [[[1], [1]]]}, "sampler_type: TRTLLMSampler"),
            ({"guided_decoding_guide_type": "json"}, "no guided_decoding_backend"),
        ):
            with pytest.raises(grpc.InferenceServerException, match=words):
                runtime.ask([5, 6], 3, **inputs)
        with pytest.raises(RefusedError, match="decoupled"):
            client.generate(GenerateRequest(PROMPT, max_tokens=2, stream=True))


def test_arguments_lie_in_model_yaml(tmp_path: Path) -> None:
    settings = {"llm": {"kv_cache_config.free_gpu_memory_fraction": "0.5", "dtype": "bfloat16"}}
    recipe = ServingRecipe(tp=2, pp=2, max_seq_len=1024, settings=settings)
    emit_repository(sample_folder("solar-llama"), tmp_path / "r", recipe)

    assert yaml.safe_load((tmp_path / "r/tensorrt_llm/1/model.yaml").read_text()) == {
        "model": "model",
        "backend": "pytorch",
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 2,
        "max_batch_size": 64,
        "max_seq_len": 1024,
        "stream_interval": 1,
        "kv_cache_config": {"enable_block_reuse": True, "free_gpu_memory_fraction": 0.5},
        "dtype": "bfloat16",
    }
    facts = json.loads((tmp_path / "r/minitron.json").read_text())
    assert (facts["tp"], facts["pp"], facts["world_size"]) == (2, 2, 4)
