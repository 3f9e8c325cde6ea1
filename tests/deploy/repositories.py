"""Repositories of engines for each GPU, whose files are holes of the size that engines have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.triton_repo.engines import engine_for

from minitron_trt.deploy.settings import KUBERNETES, DeploySettings
from minitron_trt.deploy.writing import PlannedFiles, plan_files
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

ENGINE_BYTES = 500_000_000


def repository_for(folder: Path, gpu: str, tp: int) -> Path:
    """Write a repository with an engine of a GPU."""
    source = engine_for(folder / "engine", gpu, tp=tp, size_bytes=ENGINE_BYTES)
    emit_repository(source, folder / "repository", ServingRecipe())
    return folder / "repository"


def settings_of(target: str = KUBERNETES, **options: Any) -> DeploySettings:
    """Return the settings of a deployment named llama."""
    return replace(DeploySettings(target, "llama", "claim:models"), **options)


def planned(repository: Path, target: str = KUBERNETES, **options: Any) -> PlannedFiles:
    """Return the files of a deployment, by the names of its options."""
    extra = {name: options.pop(name) for name in ("image", "gpu", "helm", "job") if name in options}
    return plan_files(repository, settings_of(target, **options), **extra)
