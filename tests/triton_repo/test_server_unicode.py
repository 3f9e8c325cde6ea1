"""Text of any script, streamed token by token through a real server, is the tokenizer's own text.

A parrot stands in for tensorrt_llm: it answers with the prompt's ids, one per response.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.triton_repo.text_calls import ask
from transformers import AutoTokenizer

from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.samples import NAMES, sample_folder
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving.runners import running_server
from minitron_trt.triton_repo.serving.server_options import Endpoints, ServerOptions, free_endpoints
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

pytestmark = pytest.mark.server

PARROT = """
import numpy as np
from minitron_models.triton_io import Sender, strings, tensor

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender, stream = Sender(request), tensor(request, "stream_id")
            echo = {} if stream is None else {"stream_id": stream}
            ids = tensor(request, "input_ids").reshape(-1)
            for at in range(len(ids)):
                last = at + 1 == len(ids)
                end = {"finish_reason": strings(["length"])[None]} if last else {}
                part = ids[at : at + 1].reshape(1, 1, -1)
                sender.send({"output_ids": part, **echo, **end}, last=last)
"""
# Besides anything: scripts whose characters are several tokens, and characters of several points.
TEXTS = st.one_of(
    st.text(min_size=1, max_size=40),
    st.text(alphabet="火星太陽系の惑星Марс🪐👩‍🚀é́ \n", min_size=1, max_size=40),
)


@dataclass(frozen=True)
class Parrot:
    """A server that says what it is told, and the tokenizer that it should sound like."""

    endpoints: Endpoints
    tokenizer: Any


@pytest.fixture(scope="module", params=NAMES)
def parrot(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Parrot]:
    """Serve a sample's repository with the parrot in its model's place."""
    folder: Path = tmp_path_factory.mktemp("parrot")
    convert(str(sample_folder(request.param)), folder / "checkpoint", ConvertOptions())
    repository = folder / "repository"
    emit_repository(folder / "checkpoint", repository, ServingRecipe(max_batch_size=4))
    shared = "tensorrt_llm/1/minitron_models"
    shutil.rmtree(repository / shared)
    shutil.copytree(repository / "postprocessing/1/minitron_models", repository / shared)
    (repository / "tensorrt_llm/1/model.py").write_text(PARROT)
    (repository / "minitron.json").unlink()  # it is no longer what was emitted
    tokenizer: Any = AutoTokenizer.from_pretrained(sample_folder(request.param))
    with running_server(
        repository, ServerOptions(free_endpoints(), drain_s=3), timeout_s=300
    ) as server:
        yield Parrot(server.endpoints, tokenizer)


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
@settings(max_examples=60)
@given(text=TEXTS)
def test_streamed_pieces_are_the_tokenizers_text(parrot: Parrot, model: str, text: str) -> None:
    ids = parrot.tokenizer(text)["input_ids"]
    answer = ask(
        parrot.endpoints, "grpc", model, text_input=text, max_tokens=len(ids) + 1, stream=True
    )

    assert answer.text == parrot.tokenizer.decode(ids, skip_special_tokens=True)
    assert len(answer.responses) == len(ids)
