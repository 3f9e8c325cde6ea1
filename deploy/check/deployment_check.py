"""A deployment's folder, checked whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from minitron_trt.artifacts import DEPLOYMENT, MANIFEST_NAME, Manifest, facts_as
from minitron_trt.deploy.check.claims import read_claims
from minitron_trt.deploy.check.engine_rules import check_claims, check_placement
from minitron_trt.deploy.check.files import Document, objects, read_documents
from minitron_trt.deploy.check.graph_rules import check_graphs
from minitron_trt.deploy.check.reference_rules import check_references
from minitron_trt.deploy.check.schema_rules import Definitions, check_schemas
from minitron_trt.deploy.deployment import Deployment
from minitron_trt.deploy.served_facts import ServedFacts
from minitron_trt.deploy.settings import DeploySettings
from minitron_trt.errors import BadInputError, MinitronError, an
from minitron_trt.triton_repo.check.report import Finding, RepositoryReport


@dataclass(frozen=True, slots=True)
class _Recorded:
    server: ServedFacts
    settings: DeploySettings


def check_deployment(folder: Path, crds: tuple[Path, ...] = ()) -> RepositoryReport:
    """Check the files of a folder that `deploy` wrote, as they are now.

    BadInputError where the folder is none; MissingExtraError without the schemas.
    """
    deployment = read_deployment(folder)
    documents, findings = read_documents(folder)
    findings += _rules(folder, documents, deployment, Definitions.read(crds))
    return RepositoryReport.of(folder, findings)


def read_deployment(folder: Path) -> Deployment:
    """Return what a deployment was made of, by its manifest."""
    manifest = Manifest.read_unchecked(folder, DEPLOYMENT)
    if manifest.kind != DEPLOYMENT:
        raise BadInputError(f"{folder} is {an(manifest.kind)}; expected {an(DEPLOYMENT)}")
    recorded = facts_as(manifest, _Recorded, folder)
    try:
        return Deployment(recorded.server, recorded.settings)
    except MinitronError as error:
        raise BadInputError(f"{folder / MANIFEST_NAME}: {error}") from error


def _rules(
    folder: Path, documents: list[Document], deployment: Deployment, definitions: Definitions
) -> Iterator[Finding]:
    yield from check_schemas(documents, definitions)
    for claims in read_claims(folder, documents):
        yield from check_claims(claims, deployment)
    found = objects(documents)
    yield from check_placement(found, deployment)
    yield from check_graphs(found)
    yield from check_references(folder, documents)
