"""The files of a deployment as they lie on the disk, with the line of every value."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import yaml

from minitron_trt.deploy.reachability import PICKER
from minitron_trt.errors import BadInputError
from minitron_trt.records import read_text
from minitron_trt.triton_repo.check.report import Finding, Severity
from minitron_trt.yaml_bounds import check_bounds

FieldPath = tuple[str | int, ...]
"""Where a value stands in a document: keys and places in lists."""
KUSTOMIZATIONS: Final = ("kustomization.yaml", "kustomization.yml")
"""What kustomize reads, by the file's name: there it need not say its kind."""
_CHART: Final = "chart/"


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a YAML file: its value, and the lines of what is in it.

    A patch, which a kustomization applies to an object, has only what it changes.
    """

    file: str
    value: dict[str, Any]
    root: Any
    is_patch: bool = False

    @property
    def kind(self) -> str:
        """Return the kind of an object of Kubernetes; "" of anything else."""
        return str(self.value.get("kind", ""))

    @property
    def is_kustomization(self) -> bool:
        """Say whether it is kustomize's to read, and no object of a cluster."""
        return posixpath.basename(self.file) in KUSTOMIZATIONS

    @property
    def name(self) -> str:
        """Return the name of an object of Kubernetes."""
        described = self.value.get("metadata")
        return str(described.get("name", "")) if isinstance(described, dict) else ""

    def at(self, *path: str | int) -> Any:
        """Return the value at a place; None where there is none."""
        value: Any = self.value
        for step in path:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):
                return None
        return value

    def line(self, *path: str | int) -> int:
        """Return the line of the value at a place, or of the nearest around it."""
        node = self.root
        for step in path:
            below = _child(node, step)
            if below is None:
                break
            node = below
        return int(node.start_mark.line) + 1

    def field(self, *path: str | int) -> str:
        """Return what findings call a place: the object, and the way to the value in it."""
        return f"{self.kind} {self.name} {'.'.join(map(str, path))}".strip()

    def finding(
        self,
        path: FieldPath,
        found: str,
        *,
        expected: str = "",
        remedy: str = "",
        severity: Severity = Severity.ERROR,
    ) -> Finding:
        """Return a finding about the value at a place."""
        return Finding(
            severity,
            file=self.file,
            field=self.field(*path),
            found=found,
            expected=expected,
            remedy=remedy,
            line=self.line(*path),
        )


def _child(node: Any, step: str | int) -> Any:
    if isinstance(node, yaml.MappingNode):
        # Of one key the last counts: what is merged in (<<) comes before what stands here.
        below = [below for key, below in node.value if key.value == str(step)]
        return below[-1] if below else None
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step]
    return None


def read_documents(folder: Path) -> tuple[list[Document], list[Finding]]:
    """Read every YAML file but a chart's templates; what cannot be read is a finding."""
    documents: list[Document] = []
    findings: list[Finding] = []
    lists: list[Finding] = []
    for path in sorted(folder.rglob("*.y*ml")):
        name = str(path.relative_to(folder))
        if name.startswith(_CHART):
            continue
        try:
            documents += _documents(name, read_text(path))
        # A date like 2026-13-01 is a ValueError of PyYAML's, and no YAMLError.
        except (yaml.YAMLError, BadInputError, RecursionError, ValueError) as error:
            mark = getattr(error, "problem_mark", None)
            said = getattr(error, "problem", None) or str(error)
            (lists if isinstance(error, _NoObjectError) else findings).append(
                Finding(
                    Severity.ERROR,
                    file=name,
                    field="",
                    found=f"not YAML that can be read: {said}",
                    line=mark.line + 1 if mark else None,
                )
            )
    patches = {file for document in documents for file in patch_files(document)}
    # Patches of JSON's kind are lists.
    findings += [finding for finding in lists if finding.file not in patches]
    return [replace(each, is_patch=each.file in patches) for each in documents], findings


def patch_files(document: Document) -> set[str]:
    """Return the files that a kustomization names otherwise than as resources: patches, mostly.

    They are relative to the deployment's folder, as `Document.file` is.
    """
    if not document.is_kustomization:
        return set()
    others = {key: value for key, value in document.value.items() if key != "resources"}
    folder = posixpath.dirname(document.file)
    # A generator of ConfigMaps has KEY=FILE, too.
    named = {name for text in _texts(others) for name in (text, text.partition("=")[2])}
    return {posixpath.normpath(posixpath.join(folder, name)) for name in named}


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in a value."""
    if isinstance(value, dict | list):
        for below in value.values() if isinstance(value, dict) else value:
            yield from _texts(below)
    elif isinstance(value, str):
        yield value


class _NoObjectError(yaml.MarkedYAMLError):  # type: ignore[misc]
    """A document is a list or a scalar."""


def _documents(name: str, text: str) -> Iterator[Document]:
    check_bounds(text)
    for root in yaml.compose_all(text, Loader=yaml.SafeLoader):
        if root is None:
            continue
        value = yaml.constructor.SafeConstructor().construct_document(root)
        if not isinstance(value, dict):
            raise _NoObjectError(
                problem="a document that is no object", problem_mark=root.start_mark
            )
        if value.get("kind") != "List":
            yield Document(name, value, root)
            continue
        # As kubectl get -o yaml writes several objects.
        for place, item in entries(value.get("items")):
            yield Document(name, item, _child(_child(root, "items"), place))


def objects(documents: list[Document]) -> list[Document]:
    """Return the whole objects of Kubernetes, without what tells other programs of them."""
    return [
        each
        for each in documents
        # The endpoint picker reads a file of its own.
        if each.kind not in ("", PICKER) and not (each.is_kustomization or each.is_patch)
    ]


def mapping(value: Any) -> dict[str, Any]:
    """Return an object, an empty one in place of anything else."""
    return value if isinstance(value, dict) else {}


def words(value: Any) -> list[str]:
    """Return the values of a list as words; what is no list has none."""
    return [str(word) for word in value] if isinstance(value, list) else []


def entries(value: Any) -> list[tuple[int, dict[str, Any]]]:
    """Return the objects of a list with their places; what is none has no say in a rule."""
    if not isinstance(value, list):
        return []
    return [(place, each) for place, each in enumerate(value) if isinstance(each, dict)]
