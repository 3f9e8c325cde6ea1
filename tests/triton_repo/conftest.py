"""A checkpoint, a repository and a running server of each sample model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.samples import NAMES, sample_folder
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving.runners import running_server
from minitron_trt.triton_repo.serving.server_options import Endpoints, ServerOptions, free_endpoints
from minitron_trt.triton_repo.serving_recipe import ServingRecipe


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The Llama sample, converted."""
    folder = tmp_path_factory.mktemp("sample") / "checkpoint"
    convert(str(sample_folder("solar-llama")), folder, ConvertOptions())
    return Checkpoint.open(folder)


@dataclass(frozen=True)
class Served:
    """A server that runs, and the model folder behind it."""

    endpoints: Endpoints
    model: Path
    pid: int


@pytest.fixture(scope="session", params=NAMES)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """A real tritonserver with the reference runtime; two ranks each way, merged on load."""
    folder = tmp_path_factory.mktemp("served")
    model = sample_folder(request.param)
    convert(str(model), folder / "checkpoint", ConvertOptions(tp=2, pp=2))
    recipe = ServingRecipe(max_batch_size=4)
    emit_repository(folder / "checkpoint", folder / "repository", recipe)
    with running_server(
        folder / "repository", ServerOptions(free_endpoints(), drain_s=3), timeout_s=300
    ) as server:
        yield Served(server.endpoints, model, server.pid)


@pytest.fixture(scope="session")
def one_response(
    checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Endpoints]:
    """The Llama sample served by models that send one response."""
    folder = tmp_path_factory.mktemp("one") / "repository"
    emit_repository(checkpoint.folder, folder, ServingRecipe(max_batch_size=4, decoupled=False))
    with running_server(
        folder, ServerOptions(free_endpoints(), drain_s=3), timeout_s=600
    ) as server:
        yield server.endpoints
