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
from tests.patience import PATIENCE_S, until
from tests.triton_repo.conftest import Served
from tests.triton_repo.engines import sample_engine
from tests.triton_repo.test_server import (
    LIMIT,
    assert_freed,
    leave_before_the_answer,
    long_answers,
    slots_in_use,
)
from tests.triton_repo.text_calls import Answered, ask, ask_in_time
from transformers import AutoModelForCausalLM, AutoTokenizer

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.clients.client import Client
from minitron_trt.clients.messages import GenerateRequest
from minitron_trt.samples import sample_folder
from minitron_trt.triton_repo.model_config import from_text, to_text
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving.runners import running_server
from minitron_trt.triton_repo.serving.server_options import ServerOptions, free_endpoints
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

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
def swapped(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server on such a repository."""
    folder = tmp_path_factory.mktemp("swapped")
    engine = sample_engine(folder / "engine")
    emit_repository(engine, folder / "repository", ServingRecipe())
    swap_runtime(folder / "repository", checkpoint, folder)
    options = ServerOptions(free_endpoints(), drain_s=3)
    with running_server(folder / "repository", options, "embedded", timeout_s=300) as server:
        yield Served(server.endpoints, sample_folder("solar-llama"), server.pid)


@pytest.fixture(params=["grpc", "http"])
def protocol(request: pytest.FixtureRequest) -> str:
    """Return each protocol."""
    return str(request.param)


@pytest.fixture
def client(swapped: Served, protocol: str) -> Iterator[Client]:
    """A client of each protocol."""
    url = getattr(swapped.endpoints, f"{protocol}_url")
    with Client.connect(url, timeout_s=PATIENCE_S, connect_timeout_s=PATIENCE_S) as client:
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


@pytest.mark.parametrize("model", FRONT_MODELS)
def test_a_stop_word_frees_the_slot(
    client: Client, swapped: Served, expected: str, model: str
) -> None:
    before = long_answers(swapped)
    # Nothing else ends it but the limit.
    options: dict[str, Any] = {"max_tokens": LIMIT, "end_id": 0, "stop_words": (expected[4:13],)}
    client.generate(GenerateRequest(PROMPT, model=model, **options))

    assert_freed(swapped, before)


@pytest.mark.parametrize("model", FRONT_MODELS)
def test_leaving_a_stream_frees_its_slot(client: Client, swapped: Served, model: str) -> None:
    before = long_answers(swapped)
    options: dict[str, Any] = {"max_tokens": LIMIT, "end_id": 0}
    with client.stream(GenerateRequest(PROMPT, model=model, **options)) as stream:
        next(iter(stream))
        until(lambda: slots_in_use(swapped) == 1)

    assert_freed(swapped, before)


def test_leaving_an_answer_that_comes_in_one_piece_frees_its_slot(swapped: Served) -> None:
    leave_before_the_answer(swapped)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_an_answer_ends_when_its_time_is_up(swapped: Served, stream: bool) -> None:
    """TensorRT-LLM's backend knows no timeout, so tensorrt_llm_bls ends it; here both do."""
    before = long_answers(swapped)
    given = {"text_input": PROMPT, "max_tokens": LIMIT, "end_id": 0, "stream": stream}
    given["return_num_output_tokens"] = True
    answer = ask_in_time(swapped.endpoints, "tensorrt_llm_bls", **given)

    assert 0 < sum(r.get("num_output_tokens", 0) for r in answer.responses) < LIMIT
    assert_freed(swapped, before)


@pytest.mark.parametrize("model", FRONT_MODELS)
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_sequences_and_statistics_come_along(
    swapped: Served, expected: str, protocol: str, model: str, stream: bool
) -> None:
    answer = ask(
        swapped.endpoints,
        protocol,
        model,
        text_input=PROMPT,
        max_tokens=COUNT,
        num_return_sequences=2,
        return_log_probs=True,
        return_num_input_tokens=True,
        stream=stream,
        request_id=f"{protocol} {model} {stream}",
    )

    for index in range(2):
        own = Answered([r for r in answer.responses if r["sequence_index"] == index])
        assert own.text == expected
        assert all(r["cum_log_probs"] < 0 for r in own.responses)
        assert all(r["num_input_tokens"] > 3 for r in own.responses)
