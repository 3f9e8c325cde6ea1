"""A server of `tensorrt_llm` alone, which answers each request once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pytest
from tests.triton_repo.runtimes.runtime_calls import Runtime, serve

from minitron_trt.triton_repo.serving_recipe import ServingRecipe

RECIPE: Final[dict[str, Any]] = {
    "max_batch_size": 4,
    "max_seq_len": 1024,
    "max_queue_size": 3,
    "stream_interval": 3,
}


@pytest.fixture(scope="session")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """A server of the Llama sample that answers once."""
    recipe = ServingRecipe(**RECIPE, decoupled=False)
    with serve(tmp_path_factory.mktemp("single"), recipe) as served:
        yield served
