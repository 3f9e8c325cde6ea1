"""A model repository: planned from an artifact, written whole, opened again with its checks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minitron_trt.artifacts import MANIFEST_NAME, REPOSITORY, Manifest, facts_as
from minitron_trt.errors import BadInputError, UnsupportedError
from minitron_trt.outputs import check_output, staged
from minitron_trt.records import read_text
from minitron_trt.triton_repo.check.manifest_rules import RepositoryFacts
from minitron_trt.triton_repo.check.repository_check import check_repository
from minitron_trt.triton_repo.contract.model_names import MODELS
from minitron_trt.triton_repo.layout import plan_repository
from minitron_trt.triton_repo.model_config import CONFIG_PBTXT, from_text
from minitron_trt.triton_repo.runtimes.choice import plan_runtime, runtime_for
from minitron_trt.triton_repo.serving_recipe import ServingRecipe


def emit_repository(
    artifact: Path,
    output: Path,
    recipe: ServingRecipe,
    *,
    runtime: str | None = None,
    overwrite: bool = False,
) -> ModelRepository:
    """Write a model repository for an artifact, whole or not at all."""
    inputs = (artifact, *([recipe.tokenizer] if recipe.tokenizer else ()))
    check_output(output, overwrite=overwrite, kind=REPOSITORY, inputs=inputs)
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
    facts: RepositoryFacts
    configs: dict[str, Any]

    @property
    def runtime(self) -> str:
        """Return the name of what generates the tokens."""
        return self.facts.runtime

    @classmethod
    def open(cls, folder: Path) -> ModelRepository:
        """Read a repository and parse every config back; BadInputError names the file."""
        manifest = Manifest.read(folder, REPOSITORY)
        facts = facts_as(manifest, RepositoryFacts, folder)
        configs = {}
        for name in facts.models:
            path = folder / name / CONFIG_PBTXT
            if f"{name}/{CONFIG_PBTXT}" not in manifest.files:
                raise BadInputError(
                    f"{folder / MANIFEST_NAME} lists the model {name!r} but no config of it; "
                    "make the repository again"
                )
            config = from_text(read_text(path), str(path))
            if config.name != name:
                raise BadInputError(f"{path} names the model {config.name!r}; expected {name!r}")
            configs[name] = config
        return cls(folder, facts, configs)
