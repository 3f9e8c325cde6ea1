"""Serve a sample by the runtime llmapi, with the stand-in in the place of TensorRT-LLM's LLM."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.triton_repo.runtimes.runtime_calls import Runtime
from transformers import AutoModelForCausalLM, AutoTokenizer

from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.migrate.migration import MigrateOptions, plan_migration
from minitron_trt.samples import sample_folder
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving.runners import running_server
from minitron_trt.triton_repo.serving.server import TritonServer
from minitron_trt.triton_repo.serving.server_options import Endpoints, ServerOptions, free_endpoints
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

PROMPT = "Complete the paragraph: our solar system is"


@dataclass(frozen=True)
class Served:
    """A server of the runtime, and what transformers makes of PROMPT."""

    endpoints: Endpoints
    runtime: Runtime
    tokenizer: Any
    ids: list[int]
    answer: list[int]
    text: str


@contextlib.contextmanager
def serve(
    folder: Path, recipe: ServingRecipe, sample: str = "solar-llama", *, migrated: bool = False
) -> Iterator[TritonServer]:
    """Serve a sample with the stand-in; one that was migrated had a checkpoint of four ranks."""
    repository = folder / "repository"
    if migrated:
        convert(str(sample_folder(sample)), folder / "checkpoint", ConvertOptions(tp=2, pp=2))
        emit_repository(folder / "checkpoint", repository, recipe)
        migration = plan_migration(repository, MigrateOptions(tp=1, pp=1))
        migration.carry_out(folder / "migrated")
        repository = folder / "migrated/repository"
    else:
        emit_repository(sample_folder(sample), repository, recipe)
    with serve_repository(repository) as server:
        yield server


@contextlib.contextmanager
def serve_repository(repository: Path) -> Iterator[TritonServer]:
    """Serve a repository with the stand-in where `import` finds it first, also in this process."""
    stand_in = Path(__file__).parent
    shutil.copytree(stand_in / "tensorrt_llm", repository / "tensorrt_llm/1/tensorrt_llm")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(stand_in))
        with running_server(
            repository, ServerOptions(free_endpoints(), drain_s=3), "embedded", timeout_s=300
        ) as server:
            yield server


@contextlib.contextmanager
def serve_knowing(
    folder: Path, llm: dict[str, str], sample: str = "solar-llama", *, migrated: bool = False
) -> Iterator[Any]:
    """Serve a sample beside what transformers makes of the prompt."""
    settings = {"llm": llm, "tensorrt_llm": {"exclude_input_in_output": "true"}}
    recipe = ServingRecipe(max_batch_size=2, max_queue_size=2, settings=settings)
    model = sample_folder(sample)
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    ids = continued(model, inputs, 30)[0]
    answer = ids[length:].tolist()
    with serve(folder, recipe, sample, migrated=migrated) as server:
        runtime = Runtime.of(server.endpoints, model, server.pid)
        text = tokenizer.decode(answer, skip_special_tokens=True)
        yield Served(server.endpoints, runtime, tokenizer, ids[:length].tolist(), answer, text)


def continued(model: Path, inputs: Any, count: int, **how: Any) -> Any:
    """Return what transformers generates, with the prompt before it."""
    network: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    with torch.inference_mode():
        return network.generate(
            **inputs, max_new_tokens=count, do_sample=False, pad_token_id=0, **how
        )
