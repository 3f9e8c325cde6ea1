"""A model repository: planned from an artifact, written whole, opened again with its checks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from minitron_trt.artifacts import (
    CHECKPOINT,
    ENGINE,
    HUGGING_FACE,
    MANIFEST_NAME,
    REPOSITORY,
    Manifest,
    check_output,
    kind_of,
    staged,
)
from minitron_trt.build.engine import Engine
from minitron_trt.checkpoint import Checkpoint
from minitron_trt.errors import BadInputError, UnsupportedError
from minitron_trt.triton_repo.check.repository_check import check_repository
from minitron_trt.triton_repo.layout import CONFIG_NAME, MODELS, Runtime, plan_repository
from minitron_trt.triton_repo.model_config import from_text
from minitron_trt.triton_repo.parameters import LLMAPI, REFERENCE, TRTLLM
from minitron_trt.triton_repo.runtimes.llmapi_runtime import HfFolder, plan_llmapi
from minitron_trt.triton_repo.runtimes.reference_runtime import plan_reference
from minitron_trt.triton_repo.runtimes.trtllm_runtime import plan_trtllm
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

_RUNTIME_OF: Final = {CHECKPOINT: REFERENCE, ENGINE: TRTLLM, HUGGING_FACE: LLMAPI}
_WAYS: Final = {
    REFERENCE: "a checkpoint: run minitron-trt convert",
    TRTLLM: "an engine: run minitron-trt build",
    LLMAPI: "a Hugging Face folder, or the output of minitron-trt convert --format hf",
}


def runtime_for(artifact: Path, asked: str | None = None) -> str:
    """Return the runtime that serves an artifact; UnsupportedError when the one asked does not."""
    kind = _kind(artifact)
    if kind not in _RUNTIME_OF:
        raise BadInputError(
            f"{artifact} is a {kind}; expected a checkpoint, an engine or a model folder"
        )
    runtime = _RUNTIME_OF[kind]
    if asked not in (None, runtime):
        raise UnsupportedError(
            f"{artifact} is of kind {kind!r}; the runtime {asked} serves {_WAYS[str(asked)]}"
        )
    return runtime


def _kind(artifact: Path) -> str:
    """Return the kind of an artifact, also of an engine that others built."""
    kind = kind_of(artifact)
    if kind != HUGGING_FACE or (artifact / MANIFEST_NAME).is_file():
        return kind
    try:
        config = json.loads((artifact / "config.json").read_text())
    except ValueError as error:
        raise BadInputError(f"{artifact}/config.json is no JSON ({error})") from error
    return ENGINE if isinstance(config, dict) and "build_config" in config else kind


def plan_runtime(artifact: Path, runtime: str, recipe: ServingRecipe) -> Runtime:
    """Open an artifact and plan the runtime over it."""
    if runtime == REFERENCE:
        return plan_reference(Checkpoint.open(artifact), recipe)
    if runtime == TRTLLM:
        return plan_trtllm(Engine.open(artifact), recipe)
    return plan_llmapi(HfFolder.open(artifact), recipe)


def emit_repository(
    artifact: Path,
    output: Path,
    recipe: ServingRecipe,
    *,
    runtime: str | None = None,
    overwrite: bool = False,
) -> ModelRepository:
    """Write a model repository for an artifact, whole or not at all."""
    check_output(output, overwrite=overwrite)
    planned = plan_runtime(artifact, runtime_for(artifact, runtime), recipe)
    plan = plan_repository(planned, recipe)
    with staged(output, overwrite=overwrite) as scratch:
        plan.write(scratch)
        facts = {
            "runtime": planned.name,
            **planned.facts,
            "recipe": recipe.to_json(),
            "models": list(MODELS),
        }
        Manifest(REPOSITORY, {"path": str(artifact)}, facts).write(scratch)
        _check(scratch, output)
    return ModelRepository.open(output)


def _check(scratch: Path, output: Path) -> None:
    """Raise UnsupportedError when what was written would not load, as with a setting's value."""
    ModelRepository.open(scratch)
    errors = check_repository(scratch).errors
    if errors:
        raise UnsupportedError(f"{output}: {errors[0].place}: {errors[0].message}")


@dataclass(frozen=True, slots=True)
class ModelRepository:
    """An opened repository: its manifest's facts and the parsed config of each model."""

    folder: Path
    runtime: str
    configs: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> ModelRepository:
        """Read a repository and parse every config back; BadInputError names the file."""
        manifest = Manifest.read(folder, REPOSITORY)
        configs = {}
        for name in manifest.facts["models"]:
            path = folder / name / CONFIG_NAME
            config = from_text(path.read_text(encoding="utf-8"), str(path))
            if config.name != name:
                raise BadInputError(f"{path} names the model {config.name!r}; expected {name!r}")
            configs[name] = config
        return cls(folder, str(manifest.facts["runtime"]), configs)
