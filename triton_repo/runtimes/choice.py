"""Which runtime serves an artifact, and how each is planned: one table.

A new runtime is a row here, a name in `runtime_names`, a module beside this one that plans it and a
folder `models/tensorrt_llm_NAME` with its model.py, unless its backend is the server's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from minitron_trt.artifacts import (
    CHECKPOINT,
    CONFIG_NAME,
    ENGINE,
    HUGGING_FACE,
    MANIFEST_NAME,
    kind_of,
)
from minitron_trt.build.engine import Engine
from minitron_trt.checkpoint import Checkpoint
from minitron_trt.errors import BadInputError, UnsupportedError, an
from minitron_trt.records import read_record
from minitron_trt.triton_repo.runtimes.llmapi_runtime import HfFolder, plan_llmapi
from minitron_trt.triton_repo.runtimes.reference_runtime import plan_reference
from minitron_trt.triton_repo.runtimes.runtime import Runtime
from minitron_trt.triton_repo.runtimes.runtime_names import LLMAPI, REFERENCE, TRTLLM
from minitron_trt.triton_repo.runtimes.trtllm_runtime import plan_trtllm
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

Artifact = TypeVar("Artifact")


@dataclass(frozen=True, slots=True)
class RuntimeChoice(Generic[Artifact]):
    """A runtime: the kind of artifact that it serves, where one comes from, and how it is read."""

    name: str
    kind: str
    origin: str
    open: Callable[[Path], Artifact]
    plan: Callable[[Artifact, ServingRecipe], Runtime]


# The first of a kind serves it unless another is requested.
_CHOICES: Final[tuple[RuntimeChoice[Any], ...]] = (
    RuntimeChoice(
        name=REFERENCE,
        kind=CHECKPOINT,
        origin="a checkpoint: run minitron-trt convert",
        open=Checkpoint.open,
        plan=plan_reference,
    ),
    RuntimeChoice(
        name=TRTLLM,
        kind=ENGINE,
        origin="an engine: run minitron-trt build",
        open=Engine.open,
        plan=plan_trtllm,
    ),
    RuntimeChoice(
        name=LLMAPI,
        kind=HUGGING_FACE,
        origin="a Hugging Face folder, or the output of minitron-trt convert --format hf",
        open=HfFolder.open,
        plan=plan_llmapi,
    ),
)


def runtime_for(artifact: Path, requested: str | None = None) -> str:
    """Return the runtime that serves an artifact; UnsupportedError when the requested cannot."""
    kind = _kind(artifact)
    able = [choice.name for choice in _CHOICES if choice.kind == kind]
    if not able:
        raise BadInputError(
            f"{artifact} is {an(kind)}; expected a checkpoint, an engine or a model folder"
        )
    if requested is not None and requested not in able:
        origin = next(other.origin for other in _CHOICES if other.name == requested)
        raise UnsupportedError(
            f"{artifact} is of kind {kind!r}; the runtime {requested} serves {origin}"
        )
    return requested or able[0]


def _kind(artifact: Path) -> str:
    """Return the kind of an artifact, also of an engine that others built."""
    kind = kind_of(artifact)
    # trtllm-build writes no manifest, and a config.json as a Hugging Face folder has one.
    if kind != HUGGING_FACE or (artifact / MANIFEST_NAME).is_file():
        return kind
    try:
        config = read_record(artifact / CONFIG_NAME, dict[str, Any])
    except ValueError as error:
        raise BadInputError(f"{artifact}/{CONFIG_NAME} is not a JSON object ({error})") from error
    return ENGINE if "build_config" in config else kind


def plan_runtime(artifact: Path, runtime: str, recipe: ServingRecipe) -> Runtime:
    """Open an artifact and plan the runtime of that name over it."""
    choice = next(choice for choice in _CHOICES if choice.name == runtime)
    return choice.plan(choice.open(artifact), recipe)
