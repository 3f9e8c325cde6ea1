"""Our manifest of a repository against its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from minitron_trt.artifacts import (
    MANIFEST_NAME,
    REPOSITORY,
    Manifest,
    facts_as,
    file_size,
    is_editable,
    kind_of,
    sha256,
)
from minitron_trt.errors import BadInputError
from minitron_trt.records import Size
from minitron_trt.triton_repo.check.model_on_disk import RepositoryFolder
from minitron_trt.triton_repo.check.report import Finding, Severity
from minitron_trt.triton_repo.contract.model_names import TENSORRT_LLM
from minitron_trt.triton_repo.model_config import CONFIG_PBTXT, TRTLLM_BACKEND
from minitron_trt.triton_repo.runtimes.runtime_names import RUNTIMES, TRTLLM
from minitron_trt.verification_record import VerificationRecord

_AGAIN: Final = "make the repository again"


@dataclass(frozen=True, slots=True)
class RepositoryFacts:
    """What is read of a repository's manifest."""

    runtime: str
    models: list[str]
    world_size: Size = 1
    mount: str | None = None
    tensorrt_llm: str | None = None
    image: str | None = None
    max_request_bytes: Size | None = None
    verification: VerificationRecord | None = None


def read_facts(folder: Path) -> tuple[Mapping[str, Any] | None, list[Finding]]:
    """Return the manifest's record; None where there is none or it is damaged."""
    path = folder / MANIFEST_NAME
    try:
        if not path.exists() or kind_of(folder) != REPOSITORY:
            return None, []
        manifest = Manifest.read_unchecked(folder, REPOSITORY)
        facts_as(manifest, RepositoryFacts, folder)
    except BadInputError as error:
        # A finding says the file and the remedy by itself.
        found = str(error).removeprefix(f"{path} ").removesuffix(f"; {_AGAIN}")
        return None, [_error("", found)]
    return {**manifest.facts, "files": manifest.files, "digests": manifest.digests}, []


def check_manifest(repository: RepositoryFolder) -> Iterator[Finding]:
    """Check that files, models and runtime are those that the manifest records."""
    facts = repository.facts or {}
    digests = facts.get("digests") or {}
    for name, size in facts.get("files", {}).items():
        yield from _check_file(repository.folder / name, name, size, digests.get(name))
    for name in facts.get("models", ()):
        if name not in repository.models and f"{name}/{CONFIG_PBTXT}" not in facts.get("files", {}):
            yield _error("models", f"lists {name!r}, which has no folder")
    runtime = facts.get("runtime")
    if runtime is not None and runtime not in RUNTIMES:
        yield _error("runtime", f"is {runtime!r}; expected one of {', '.join(RUNTIMES)}")
    for model in repository.of_role(TENSORRT_LLM):
        if (model.config.backend == TRTLLM_BACKEND) != (runtime == TRTLLM):
            yield _error(
                "runtime", f"is {runtime!r}, but {model.file} has backend {model.config.backend!r}"
            )


def _check_file(path: Path, name: str, size: int, digest: str | None) -> Iterator[Finding]:
    """Check that a file is as it was made; one that people edit need only be there."""
    actual = file_size(path)
    # By the size first: a digest reads the whole file.
    if actual == size and digest in (None, sha256(path)):
        return
    if actual is not None and is_editable(REPOSITORY, name):
        yield Finding(Severity.NOTE, file=name, field="", found="edited since it was made")
        return
    expected = f"{size} bytes, as {MANIFEST_NAME} says"
    found = "is missing" if actual is None else f"is {actual} bytes"
    if actual == size:
        found, expected = "has other contents", f"those whose digest {MANIFEST_NAME} has"
    yield Finding(
        Severity.ERROR,
        file=name,
        field="",
        found=found,
        expected=expected,
        remedy=_AGAIN,
    )


def _error(field: str, found: str) -> Finding:
    return Finding(
        Severity.ERROR,
        file=MANIFEST_NAME,
        field=field,
        found=found,
        remedy=_AGAIN,
    )
