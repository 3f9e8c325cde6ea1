"""A Q8_0 GGUF file, converted and served, gives the text of the model it was made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.convert.conftest import write_gguf as write_gguf
from tests.patience import PATIENCE_S
from tests.triton_repo.greedy_texts import MOST_TOKENS, greedy_text

from minitron_trt.clients.client import Client
from minitron_trt.clients.messages import GenerateRequest
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.samples import NAMES, sample_folder
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving.runners import running_server
from minitron_trt.triton_repo.serving.server_options import ServerOptions, free_endpoints
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

pytestmark = pytest.mark.server
WriteGguf = Callable[..., Path]
PROMPTS = (
    "Complete the paragraph: our solar system is",
    "In Japanese: 太陽系には",
    "Question: Why is Mars red? Answer:",
)


@pytest.mark.parametrize("name", NAMES)
def test_the_served_text_of_a_q8_0_file_is_its_source_models(
    name: str, write_gguf: WriteGguf, tmp_path: Path
) -> None:
    path = write_gguf(sample_folder(name), tmp_path / "model.gguf", "Q8_0")
    convert(str(path), tmp_path / "checkpoint", ConvertOptions())
    emit_repository(
        tmp_path / "checkpoint", tmp_path / "repository", ServingRecipe(bls_instances=1)
    )
    with (
        running_server(
            tmp_path / "repository", ServerOptions(free_endpoints(), drain_s=3), timeout_s=300
        ) as server,
        Client.connect(
            server.endpoints.grpc_url, timeout_s=120, connect_timeout_s=PATIENCE_S
        ) as client,
    ):
        served = [
            client.generate(GenerateRequest(prompt, max_tokens=MOST_TOKENS)) for prompt in PROMPTS
        ]

    assert served == [greedy_text(sample_folder(name), prompt) for prompt in PROMPTS]
