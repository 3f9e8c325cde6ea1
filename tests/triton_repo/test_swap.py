"""An engine's repository answers on a real tritonserver when one folder is swapped.

Nothing here has a GPU, so the reference runtime takes the place of TensorRT-LLM's backend, with the
tensors of the latter: it neither knows a stream's id nor says why a sequence ended. All the rest is
as `triton-repo` wrote it for the engine.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.triton_repo.engines import sample_engine
from transformers import AutoModelForCausalLM, AutoTokenizer

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.clients.client import Client
from minitron_trt.clients.messages import GenerateRequest
from minitron_trt.samples import sample_folder
from minitron_trt.triton_repo.model_config import from_text, to_text
from minitron_trt.triton_repo.recipe import ServingRecipe
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving.runners import serving
from minitron_trt.triton_repo.serving.server_options import ServerOptions, free_endpoints

pytestmark = pytest.mark.server

PROMPT = "Complete the paragraph: our solar system is"
FRONT_MODELS = ("ensemble", "tensorrt_llm_bls")
COUNT = 40


def swap_runtime(repository: Path, checkpoint: Checkpoint, folder: Path) -> None:
    """Put the reference runtime into an engine's repository, behind the backend's own tensors."""
    emit_repository(checkpoint.folder, folder / "other", ServingRecipe(max_batch_size=4))
    path = repository / "tensorrt_llm/config.pbtxt"
    emitted = from_text(path.read_text(), "")
    shutil.rmtree(repository / "tensorrt_llm")
    shutil.copytree(folder / "other/tensorrt_llm", repository / "tensorrt_llm")
    config = from_text(path.read_text(), "")
    for field in ("input", "output"):
        config.ClearField(field)
        getattr(config, field).extend(getattr(emitted, field))
    path.write_text(to_text(config))
    # It lists the engine's files.
    (repository / "minitron.json").unlink()


@pytest.fixture(scope="module")
def client(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a server on such a repository."""
    folder = tmp_path_factory.mktemp("swapped")
    engine = sample_engine(folder / "engine")
    emit_repository(engine, folder / "repository", ServingRecipe())
    swap_runtime(folder / "repository", checkpoint, folder)
    options = ServerOptions(free_endpoints())
    with (
        serving(folder / "repository", options, "embedded", timeout_s=300) as server,
        Client.connect(server.endpoints.grpc_url, timeout_s=60) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def expected() -> str:
    """What transformers makes of the prompt, greedily."""
    folder = sample_folder("solar-llama")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=COUNT, do_sample=False, pad_token_id=0)
    text = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return str(text)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("model", FRONT_MODELS)
def test_the_text_is_what_transformers_makes(
    client: Client, expected: str, model: str, stream: bool
) -> None:
    request = GenerateRequest(PROMPT, max_tokens=COUNT, model=model, stream=stream)
    with client.stream(request) as pieces:
        found = list(pieces)

    assert "".join(found) == expected
    assert (len(found) > 3) == stream


@pytest.mark.parametrize("model", FRONT_MODELS)
def test_text_ends_before_a_stop_word(client: Client, expected: str, model: str) -> None:
    words = (expected[20:32],)

    text = client.generate(GenerateRequest(PROMPT, max_tokens=COUNT, model=model, stop_words=words))

    assert text == expected[:20]
