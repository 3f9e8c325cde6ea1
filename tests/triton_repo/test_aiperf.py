"""NVIDIA's load generator aiperf, unchanged, against both text models: `make test-aiperf`.

Its pins are not those of this project, so it has an environment of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.triton_repo.conftest import Served
from tests.triton_repo.text_calls import ask

from minitron_trt.samples import sample_folder
from minitron_trt.triton_repo.serving.server_options import Endpoints

# One sample: what is looked at here does not depend on the model.
pytestmark = [pytest.mark.server, pytest.mark.slow]

REQUESTS = 4
TOKENS = 8
PAYLOAD = """{
  "text_input": {{ text|tojson }}, "max_tokens": %d, "end_id": 0, "stream": {{ stream|tojson }}
}"""


@pytest.fixture(scope="module")
def aiperf() -> str:
    """Return the program."""
    if "AIPERF" not in os.environ:
        pytest.skip("AIPERF names no aiperf; run make test-aiperf")
    return os.environ["AIPERF"]


def profile(aiperf: str, endpoints: Endpoints, model: str, folder: Path, *, stream: bool) -> None:
    """Run a load of a few requests; what comes of it lies in the folder."""
    template = folder / "payload.json"
    template.write_text(PAYLOAD % TOKENS)
    verb = "generate_stream" if stream else "generate"
    options = [
        *("--url", endpoints.http_url),
        *("--endpoint-type", "template", "--endpoint", f"/v2/models/{model}/{verb}"),
        *("--extra-inputs", f"payload_template:{template}"),
        *("--extra-inputs", "response_field:text_output"),
    ]
    run(aiperf, model, options, folder, stream=stream)


def run(aiperf: str, model: str, options: list[str], folder: Path, *, stream: bool) -> None:
    """Have aiperf send a few requests as its options say."""
    command = [
        *(aiperf, "profile", "--model", model, *options),
        *(["--streaming"] if stream else []),
        *("--request-count", str(REQUESTS), "--concurrency", "2"),
        *("--synthetic-input-tokens-mean", "12"),
        *("--tokenizer", str(sample_folder("solar-llama"))),
        *("--artifact-dir", str(folder), "--ui", "none", "--export-outputs-json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def read(path: Path) -> Any:
    """Return what a JSON file holds."""
    return json.loads(path.read_text())


def assert_is_measured(
    aiperf: str, endpoints: Endpoints, model: str, folder: Path, *, stream: bool
) -> None:
    """Compare aiperf's texts with those of a plain request, and look at its figures."""
    profile(aiperf, endpoints, model, folder, stream=stream)
    figures = read(folder / "profile_export_aiperf.json")
    prompts = {
        session["session_id"]: session["payloads"][0]["text_input"]
        for session in read(folder / "inputs.json")["data"]
    }
    answers = read(folder / "outputs.json")["data"]

    assert figures["request_count"]["avg"] == REQUESTS == len(answers)
    assert figures["output_sequence_length"]["min"] > 0
    assert ("inter_token_latency" in figures) is stream
    for answer in answers:
        given = {"text_input": prompts[answer["conversation_id"]], "max_tokens": TOKENS}
        expected = ask(endpoints, "grpc", model, **given, end_id=0).text
        assert answer["response_text"] == expected


@pytest.mark.parametrize("served", ["solar-llama"], indirect=True, scope="session")
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_decoupled_models_are_measured(
    aiperf: str, served: Served, model: str, stream: bool, tmp_path: Path
) -> None:
    assert_is_measured(aiperf, served.endpoints, model, tmp_path, stream=stream)


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_models_that_send_one_response_are_measured(
    aiperf: str, one_response: Endpoints, model: str, tmp_path: Path
) -> None:
    assert_is_measured(aiperf, one_response, model, tmp_path, stream=False)


@contextlib.contextmanager
def gateway_of(endpoints: Endpoints) -> Iterator[str]:
    """Run the gateway before a server; yield its URL."""
    argv = [sys.executable, "-m", "minitron_trt", "gateway", "--url", endpoints.grpc_url]
    with subprocess.Popen(
        [*argv, "--port", "0", "--json"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["page"].rstrip("/")
        finally:
            process.terminate()


@pytest.mark.parametrize("served", ["solar-llama"], indirect=True, scope="session")
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_the_gateway_is_measured(aiperf: str, served: Served, stream: bool, tmp_path: Path) -> None:
    options = ["--endpoint-type", "completions", "--output-tokens-mean", str(TOKENS)]
    options += ["--extra-inputs", "temperature:0", "--use-server-token-count"]
    with gateway_of(served.endpoints) as url:
        run(aiperf, "ensemble", ["--url", url, *options], tmp_path, stream=stream)
    figures = read(tmp_path / "profile_export_aiperf.json")
    answers = read(tmp_path / "outputs.json")["data"]

    assert figures["request_count"]["avg"] == REQUESTS == len(answers)
    assert 0 < figures["output_sequence_length"]["max"] <= TOKENS
    assert ("inter_token_latency" in figures) is stream
    assert all(answer["response_text"] for answer in answers)
