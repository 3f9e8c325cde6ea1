"""`serve --gateway`: the openai package asks a real tritonserver behind the gateway."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import openai
import pytest
from click.testing import Result
from openai import OpenAI
from tests.patience import PATIENCE_S, until

from minitron_trt.clients.client import Client
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.samples import sample_folder
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving.runtime_load import read_load, read_local
from minitron_trt.triton_repo.serving.server_options import free_endpoints
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

LONG = {"min_tokens": 1900}
PROMPT = "Complete the paragraph: our solar system is"


@dataclass
class ServedGateway:
    """A server and its gateway that run."""

    addresses: dict[str, Any]
    process: subprocess.Popen[str]
    log: IO[str]


@pytest.mark.slow
def test_bad_options_of_the_gateway_end_it_before_triton_starts(
    command: Callable[..., Result], repository: Path
) -> None:
    result = command("serve", repository, "--gateway-options", "--host 0.0.0.0")

    assert result.exit_code == 2
    assert "the gateway does not start: whoever reaches 0.0.0.0 could ask" in result.stderr
    assert "starting tritonserver" not in result.stderr


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gateway")
    convert(str(sample_folder("solar-llama")), folder / "checkpoint", ConvertOptions())
    recipe = ServingRecipe(max_batch_size=4)
    emit_repository(folder / "checkpoint", folder / "repository", recipe)
    return folder / "repository"


@pytest.fixture(scope="module")
def served(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedGateway]:
    ports = free_endpoints()
    argv = (
        *(sys.executable, "-m", "minitron_trt", "serve", str(repository), "--json"),
        *("--http-port", str(ports.http_port), "--grpc-port", str(ports.grpc_port)),
        *("--metrics-port", str(ports.metrics_port), "--drain", "5", "--timeout", "600"),
        *("--gateway", "--gateway-options", "--port 0"),
    )
    with (
        (tmp_path_factory.mktemp("log") / "stderr").open("w+") as log,
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, Path(log.name).read_text()
            yield ServedGateway(json.loads(line), process, log)
        finally:
            process.terminate()


@pytest.fixture
def client(served: ServedGateway) -> Iterator[OpenAI]:
    with OpenAI(base_url=served.addresses["openai"], api_key="none", timeout=PATIENCE_S) as client:
        yield client


@pytest.mark.server
@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_an_answer_is_that_of_a_client_of_triton(
    served: ServedGateway, client: OpenAI, model: str
) -> None:
    with Client.connect(served.addresses["grpc"]) as direct:
        told = direct.generate(PROMPT, model=model, max_tokens=12, return_log_probs=True)
    whole = client.completions.create(
        model=model, prompt=PROMPT, max_tokens=12, temperature=0, logprobs=1
    )
    chunks = list(
        client.completions.create(
            model=model, prompt=PROMPT, max_tokens=12, temperature=0, stream=True
        )
    )

    choice = whole.choices[0]
    assert choice.text == told.text == "".join(chunk.choices[0].text for chunk in chunks)
    assert choice.finish_reason == told.finish_reason == chunks[-1].choices[0].finish_reason
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == told.prompt_tokens
    assert whole.usage.completion_tokens == told.completion_tokens == 12
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs == pytest.approx(told.log_probs)
    assert "".join(choice.logprobs.tokens or ()) == choice.text


@pytest.mark.server
def test_a_seed_and_several_sequences_repeat(client: OpenAI) -> None:
    texts = [
        [
            choice.text
            for choice in client.completions.create(
                model="ensemble", prompt=PROMPT, max_tokens=16, n=4, seed=5, temperature=1.5
            ).choices
        ]
        for _ in range(2)
    ]

    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 1


@pytest.mark.server
def test_a_stop_word_and_an_echo_are_the_models(client: OpenAI) -> None:
    plain = client.completions.create(
        model="ensemble", prompt=PROMPT, max_tokens=12, temperature=0
    ).choices[0]
    word = plain.text.split()[3]
    cut = client.completions.create(
        model="ensemble", prompt=PROMPT, max_tokens=12, temperature=0, stop=word, echo=True
    ).choices[0]

    assert cut.text == PROMPT + plain.text.partition(word)[0]
    assert cut.finish_reason == "stop"


@pytest.mark.server
def test_what_the_runtime_lacks_is_refused_by_openais_name(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.completions.create(
            model="ensemble", prompt="x", extra_body={"response_format": {"type": "json_object"}}
        )
    assert raised.value.param == "response_format"
    with pytest.raises(openai.BadRequestError) as raised:
        client.completions.create(model="ensemble", prompt="x", max_tokens=5000)
    assert raised.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="--chat-template FILE"):
        client.chat.completions.create(
            model="ensemble", messages=[{"role": "user", "content": "Hello"}]
        )


@pytest.mark.server
@pytest.mark.parametrize(
    ("model", "stream"), [("ensemble", True), ("ensemble", False), ("tensorrt_llm_bls", True)]
)
def test_hanging_up_frees_the_slot_in_triton(
    served: ServedGateway, model: str, *, stream: bool
) -> None:
    metrics = served.addresses["metrics"]
    before = steps(metrics)
    with OpenAI(
        base_url=served.addresses["openai"], api_key="none", timeout=1.0, max_retries=0
    ) as client:
        asked: dict[str, Any] = {"model": model, "prompt": PROMPT, "extra_body": LONG}
        if stream:
            chunks = client.completions.create(
                **asked, max_tokens=1900, stream=True, timeout=PATIENCE_S
            )
            next(iter(chunks))
            chunks.close()
        else:
            with pytest.raises(openai.APITimeoutError):
                client.completions.create(**asked, max_tokens=1900)

    until(lambda: (load := read_load(metrics, 5.0)) is not None and load.is_idle)
    # Each token of one sequence is a step of its own.
    assert steps(metrics) - before < LONG["min_tokens"]


def steps(metrics: str) -> int:
    """Return how many steps the runtime has made."""
    page = read_local(metrics, PATIENCE_S)
    found = re.search(r'general_type="iteration_counter"[^}]*\} (\d+)', page or "")
    assert found is not None
    return int(found[1])


@pytest.mark.server
def test_a_stop_lets_the_gateway_finish_first(served: ServedGateway, client: OpenAI) -> None:
    stream = client.completions.create(
        model="ensemble", prompt=PROMPT, max_tokens=60, temperature=0, stream=True
    )
    texts = [next(stream).choices[0].text]
    served.process.send_signal(signal.SIGTERM)
    reasons = [chunk.choices[0].finish_reason for chunk in stream]

    assert texts
    assert reasons[-1] in ("length", "stop")
    assert served.process.wait(PATIENCE_S) == 0
    assert "requests or streams were open" not in Path(served.log.name).read_text()
