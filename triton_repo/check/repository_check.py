"""Check a whole model repository, of this tool or another's, without a server or a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from minitron_trt.build.engine import Engine
from minitron_trt.errors import BadInputError
from minitron_trt.triton_repo.check.config_rules import check_config
from minitron_trt.triton_repo.check.contract_rules import (
    check_contract,
    check_instances,
    check_relay,
)
from minitron_trt.triton_repo.check.ensemble_rules import check_ensemble
from minitron_trt.triton_repo.check.manifest_rules import check_manifest, read_facts
from minitron_trt.triton_repo.check.model_on_disk import TEXT_RUNTIME, ModelFolder, RepositoryFolder
from minitron_trt.triton_repo.check.pbtxt_syntax import check_text
from minitron_trt.triton_repo.check.report import Finding, RepositoryReport, Severity
from minitron_trt.triton_repo.check.runtime_rules import check_parameters, find_engine, open_served
from minitron_trt.triton_repo.check.tokenizer_rules import check_tokenizers
from minitron_trt.triton_repo.contract.model_names import TENSORRT_LLM, TENSORRT_LLM_BLS
from minitron_trt.triton_repo.model_config import CONFIG_PBTXT
from minitron_trt.verification_record import recorded_verification


def is_repository(folder: Path) -> bool:
    """Say whether a folder is a repository of ours, or holds Triton models."""
    facts, _ = read_facts(folder)
    return facts is not None or _has_models(folder)


def _has_models(folder: Path) -> bool:
    return any(folder.glob(f"*/{CONFIG_PBTXT}"))


def check_repository(folder: Path) -> RepositoryReport:
    """Return everything that is wrong with a model repository, by file and field.

    BadInputError when the folder holds no model at all.
    """
    repository, findings = read_repository(folder)
    # In this order: what an earlier rule explains, a later one does not report again.
    findings += _check_models(repository)
    findings += _check_served(repository, findings)
    if repository.is_ours:
        findings += check_manifest(repository)
    return RepositoryReport.of(folder, findings, recorded_verification(repository.facts or {}))


def engine_of(folder: Path) -> Engine:
    """Return the engine that a repository serves.

    UsageError when it has none on this machine; BadInputError when the engine is damaged.
    """
    return find_engine(read_repository(folder)[0])


def read_repository(folder: Path) -> tuple[RepositoryFolder, list[Finding]]:
    """Return a repository as it lies on the disk, and what of it cannot be read.

    BadInputError when the folder holds no model at all.
    """
    if not _has_models(folder):
        raise BadInputError(
            f"{folder} holds no Triton model; expected folders with {CONFIG_PBTXT} in it"
        )
    facts, findings = read_facts(folder)
    models: dict[str, ModelFolder] = {}
    for path in sorted(child for child in folder.iterdir() if child.is_dir()):
        try:
            models[path.name] = ModelFolder.read(path)
        except (FileNotFoundError, BadInputError, RecursionError) as error:
            findings.append(_unreadable(path, error))
    return RepositoryFolder(folder, models, facts), findings


def _unreadable(path: Path, error: Exception) -> Finding:
    file = f"{path.name}/{CONFIG_PBTXT}"
    if not isinstance(error, FileNotFoundError):
        found = f"cannot be read ({error})"
        return Finding(
            Severity.ERROR,
            file=file,
            field="",
            found=found,
            remedy="write it again as text",
        )
    return Finding(
        Severity.ERROR,
        file=file,
        field="",
        found="is missing",
        expected="a config in every folder of a repository, each of which Triton takes for a model",
        remedy=f"add it, or move {path.name} elsewhere",
    )


def _check_models(repository: RepositoryFolder) -> Iterator[Finding]:
    """Check each model by itself, and the ensembles' wires."""
    for model in repository.models.values():
        yield from check_text(model)
        if model.config is not None:
            yield from check_config(model)
            yield from check_parameters(model, is_ours=repository.is_ours)
            if model.config.ensemble_scheduling.step:
                yield from check_ensemble(model, repository.models)


def _check_served(repository: RepositoryFolder, earlier: list[Finding]) -> Iterator[Finding]:
    """Check what TensorRT-LLM's models need beyond Triton's rules."""
    explained = {pair for finding in earlier for pair in finding.tensors}
    vocabularies: list[int] = []
    for model in repository.of_role(TENSORRT_LLM, TEXT_RUNTIME):
        served, findings = open_served(model, repository)
        vocabularies += [served.vocab] if served.vocab else []
        for finding in findings:
            explained |= finding.tensors
            yield finding
    for model in repository.of_role(TENSORRT_LLM_BLS):
        for finding in check_relay(model, repository):
            if not finding.tensors & explained:
                yield finding
    for model in repository.models.values():
        if model.config is not None:
            yield from check_contract(model, repository, explained)
            if repository.is_ours:
                yield from check_instances(model)
    # One tokenizer serves them all, a draft model included: its ids must fit the smallest.
    yield from check_tokenizers(repository, min(vocabularies, default=None))
