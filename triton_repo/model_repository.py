"""A model repository as it lies on the disk, opened by its manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minitron_trt.artifacts import MANIFEST_NAME, REPOSITORY, Manifest, facts_as
from minitron_trt.errors import BadInputError
from minitron_trt.records import read_text
from minitron_trt.triton_repo.check.manifest_rules import RepositoryFacts
from minitron_trt.triton_repo.contract.model_names import TENSORRT_LLM
from minitron_trt.triton_repo.model_config import CONFIG_PBTXT, from_text


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
        if TENSORRT_LLM not in facts.models:
            raise BadInputError(
                f"{folder / MANIFEST_NAME} lists no model {TENSORRT_LLM!r}; make the repository "
                "again"
            )
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
