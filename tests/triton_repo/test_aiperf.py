"""NVIDIA's load generator aiperf, unchanged, against both text models: `make test-aiperf`.

Its pins are not those of this project, so it has an environment of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
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
    command = [
        *(aiperf, "profile", "--model", model, "--url", endpoints.http_url),
        *("--endpoint-type", "template", "--endpoint", f"/v2/models/{model}/{verb}"),
        *("--extra-inputs", f"payload_template:{template}"),
        *("--extra-inputs", "response_field:text_output"),
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
