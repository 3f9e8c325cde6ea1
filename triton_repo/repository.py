"""A model repository: planned from an artifact, written whole, and checked before it appears."""

from __future__ import annotations

from pathlib import Path

from minitron_trt.artifacts import REPOSITORY, Manifest
from minitron_trt.errors import UnsupportedError
from minitron_trt.outputs import check_output, staged
from minitron_trt.triton_repo.check.repository_check import check_repository
from minitron_trt.triton_repo.contract.model_names import MODELS, TENSORRT_LLM_DRAFT
from minitron_trt.triton_repo.layout import max_request_bytes, plan_repository
from minitron_trt.triton_repo.model_repository import ModelRepository
from minitron_trt.triton_repo.runtimes.choice import plan_runtime, runtime_for
from minitron_trt.triton_repo.runtimes.draft import plan_draft
from minitron_trt.triton_repo.serving_recipe import ServingRecipe


def emit_repository(
    artifact: Path,
    output: Path,
    recipe: ServingRecipe,
    *,
    runtime: str | None = None,
    overwrite: bool = False,
    recorded_as: Path | None = None,
) -> ModelRepository:
    """Write a model repository for an artifact, whole or not at all.

    Its manifest has the artifact's place, or the one that it will have: `recorded_as`.
    """
    inputs = (artifact, *(folder for folder in (recipe.tokenizer, recipe.draft) if folder))
    check_output(output, overwrite=overwrite, kind=REPOSITORY, inputs=inputs)
    planned = plan_runtime(artifact, runtime_for(artifact, runtime), recipe)
    draft = None if recipe.draft is None else plan_draft(recipe.draft, planned, recipe)
    plan = plan_repository(planned, recipe, draft)
    with staged(output, overwrite=overwrite) as scratch:
        plan.write(scratch)
        facts = {
            "runtime": planned.name,
            **planned.facts,
            "max_request_bytes": max_request_bytes(planned),
            "recipe": recipe.to_json(),
            "models": [*MODELS, *([TENSORRT_LLM_DRAFT] if draft else ())],
        }
        Manifest(REPOSITORY, {"path": str(recorded_as or artifact)}, facts).write(scratch)
        _check(scratch, output)
    return ModelRepository.open(output)


def _check(scratch: Path, output: Path) -> None:
    """Raise UnsupportedError when what was written would not load, as with a setting's value."""
    ModelRepository.open(scratch)
    errors = check_repository(scratch).errors
    if errors:
        raise UnsupportedError(f"{output}: {errors[0].place}: {errors[0].message}")
