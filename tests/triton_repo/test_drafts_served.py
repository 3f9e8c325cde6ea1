"""A draft model beside the target, on a real tritonserver: the text is that without drafts."""

from __future__ import annotations

import queue
import re
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as grpc
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tests.patience import PATIENCE_S, until
from tests.triton_repo.text_calls import RefusalError, ask
from tests.triton_repo.text_calls import tensors as tensors_of

from minitron_trt.clients.client import Client
from minitron_trt.clients.messages import GenerateRequest
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.deploy.served_facts import read_facts
from minitron_trt.errors import RefusedError, UnsupportedError, UsageError
from minitron_trt.samples import sample_folder
from minitron_trt.triton_repo.check.repository_check import check_repository
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving.runners import running_server
from minitron_trt.triton_repo.serving.server_options import Endpoints, ServerOptions, free_endpoints
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

BLS = "tensorrt_llm_bls"
PROMPT = "Complete the paragraph: our solar system is"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a target, and a draft model that is often right and never says some tokens."""
    folder = tmp_path_factory.mktemp("drafts")
    for name in ("target", "draft"):
        convert(str(sample_folder("solar-llama")), folder / name, ConvertOptions())
    path = folder / "draft" / "rank0.safetensors"
    tensors = load_file(path)
    # A copy: what is read may not be written to.
    head = tensors["lm_head.weight"].copy()
    head[::7] = 0
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    save_file({**tensors, "lm_head.weight": head}, path, metadata)
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def repository(checkpoints: dict[str, Path]) -> Path:
    output = checkpoints["target"].with_name("repository")
    recipe = ServingRecipe(draft=checkpoints["draft"], bls_instances=2)
    emit_repository(checkpoints["target"], output, recipe)
    return output


@pytest.fixture(scope="module")
def endpoints(repository: Path) -> Iterator[Endpoints]:
    options = ServerOptions(free_endpoints(), drain_s=3)
    with running_server(repository, options, timeout_s=300) as server:
        yield server.endpoints


def active_requests(endpoints: Endpoints) -> dict[str, float]:
    """Return how many sequences each model has in its slots."""
    with urllib.request.urlopen(endpoints.metrics_url, timeout=PATIENCE_S) as answer:
        page = answer.read().decode()
    found = re.findall(
        r'nv_trt_llm_request_metrics{model="(\w+)",request_type="active",.*} (\d+)', page
    )
    return {model: float(count) for model, count in found}


@pytest.mark.server
@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 60},
        {"max_tokens": 1},
        {"max_tokens": 250},
        {"max_tokens": 60, "stop_words": ["planets"]},
        {"max_tokens": 40, "repetition_penalty": 1.3, "min_tokens": 30},
    ],
    ids=["greedy", "one token", "to its end", "stop word", "penalized"],
)
def test_the_text_is_that_without_drafts(
    endpoints: Endpoints, options: dict[str, Any], stream: bool, protocol: str
) -> None:
    request = {"text_input": PROMPT, "stream": stream, **options}
    plain = ask(endpoints, protocol, BLS, **request)
    for count in (1, 4, 300):
        drafted = ask(endpoints, protocol, BLS, num_draft_tokens=count, **request)

        assert (drafted.text, drafted.finish_reason) == (plain.text, plain.finish_reason), count
        assert (
            not stream
            or options["max_tokens"] == 1
            or len(drafted.responses) < len(plain.responses)
        )


@pytest.mark.server
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_client_asks_for_drafts_where_a_model_takes_them(
    endpoints: Endpoints, protocol: str
) -> None:
    request = GenerateRequest(PROMPT, max_tokens=40, model=BLS)
    with Client.connect(getattr(endpoints, f"{protocol}_url")) as client:
        plain = list(client.stream(request))
        drafted = list(client.stream(replace(request, num_draft_tokens=4)))

        with pytest.raises(RefusedError, match="no input num_draft_tokens"):
            client.generate(replace(request, num_draft_tokens=4, model="ensemble"))

    assert "".join(drafted) == "".join(plain)
    assert len(drafted) < len(plain)


@pytest.mark.server
def test_what_drafts_did_is_counted_and_log_probs_are_those_without(endpoints: Endpoints) -> None:
    request = {"text_input": PROMPT, "max_tokens": 40, "return_log_probs": True}
    plain = ask(endpoints, "grpc", BLS, **request).responses[0]
    flags = {"return_perf_metrics": True, "return_num_input_tokens": True}
    drafted = ask(endpoints, "grpc", BLS, num_draft_tokens=4, **request, **flags).responses[0]
    accepted, drafts = drafted["total_accepted_draft_tokens"], drafted["total_draft_tokens"]

    assert drafted["output_log_probs"] == pytest.approx(plain["output_log_probs"], abs=0.05)
    assert drafted["cum_log_probs"] == pytest.approx(plain["cum_log_probs"], abs=0.2)
    assert 0 < accepted < drafts
    assert drafted["acceptance_rate"] == pytest.approx(accepted / drafts)
    assert drafted["arrival_time_ns"] <= drafted["first_token_time_ns"]
    assert drafted["first_token_time_ns"] < drafted["last_token_time_ns"]
    assert 1 < drafted["num_input_tokens"] < 40


@pytest.mark.server
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"use_draft_logits": True}, "use_draft_logits cannot be had with num_draft_tokens"),
        ({"return_context_logits": True}, "return_context_logits cannot be had"),
        ({"num_return_sequences": 2}, "num_return_sequences is for 2 texts"),
        ({"beam_width": 2}, "beam_width is for 2 texts"),
        ({"num_draft_tokens": -1}, "num_draft_tokens is -1; expected 0 or more"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_drafts_cannot_do_is_refused_by_name(
    endpoints: Endpoints, inputs: dict[str, Any], message: str
) -> None:
    request = {"text_input": PROMPT, "max_tokens": 9, "num_draft_tokens": 4, **inputs}
    with pytest.raises(RefusalError) as refused:
        ask(endpoints, "grpc", BLS, **request)

    assert message in str(refused.value)


@pytest.mark.server
def test_a_client_who_leaves_frees_both_models(endpoints: Endpoints) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    request = {"text_input": PROMPT, "max_tokens": 2000, "min_tokens": 2000, "stream": True}
    with grpc.InferenceServerClient(endpoints.grpc_url.removeprefix("grpc://")) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        client.async_stream_infer(BLS, tensors_of({**request, "num_draft_tokens": 3}))
        answers.get(timeout=PATIENCE_S)
        client.stop_stream(cancel_requests=True)
    until(lambda: active_requests(endpoints) == {"tensorrt_llm": 0, "tensorrt_llm_draft": 0})

    # Its process of tensorrt_llm_bls is free as well: there are two.
    for _ in range(2):
        assert ask(endpoints, "grpc", BLS, text_input=PROMPT, max_tokens=3).text


def test_the_repository_is_right_and_lists_the_model(repository: Path) -> None:
    assert not check_repository(repository).errors
    assert (repository / "tensorrt_llm_draft" / "1" / "model.py").is_file()


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ("austen-llama", "the tokenizer of .* gives other ids|token ids and the model"),
        ("solar-nemotron", "holds sequences of 1024 tokens .* lower --max-seq-len to 1024"),
    ],
)
def test_a_draft_model_that_does_not_fit_is_refused(
    checkpoints: dict[str, Path],
    tmp_path: Path,
    sample: str,
    message: str,
) -> None:
    convert(str(sample_folder(sample)), tmp_path / "other", ConvertOptions())
    with pytest.raises(UnsupportedError, match=message):
        emit_repository(
            checkpoints["target"], tmp_path / "r", ServingRecipe(draft=tmp_path / "other")
        )

    assert not (tmp_path / "r").exists()


def test_a_model_of_another_architecture_may_draft(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """The samples of the solar system share their tokenizer."""
    convert(str(sample_folder("solar-nemotron")), tmp_path / "other", ConvertOptions())
    recipe = ServingRecipe(draft=tmp_path / "other", max_seq_len=512)
    emit_repository(checkpoints["target"], tmp_path / "r", recipe)

    assert not check_repository(tmp_path / "r").errors


def test_an_engine_or_a_model_folder_takes_no_draft_checkpoint(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="--draft means nothing to the runtime llmapi"):
        emit_repository(
            sample_folder("solar-llama"),
            tmp_path / "r",
            ServingRecipe(draft=checkpoints["draft"]),
        )


def test_what_has_a_draft_model_is_not_deployed(repository: Path) -> None:
    with pytest.raises(UnsupportedError, match="has a draft model"):
        read_facts(repository, gpu=None, image="image:1", drain_s=20)
