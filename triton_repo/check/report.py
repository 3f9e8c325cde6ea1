"""What a check of a model repository found: where, what, what was expected, what to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from minitron_trt.verification_record import VerificationRecord, verification_facts


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"  # it will not load, or will answer wrongly
    WARNING = "warning"  # it will load; something is probably not as meant
    NOTE = "note"  # could not be checked here


_ORDER = {severity: rank for rank, severity in enumerate(Severity)}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be."""

    severity: Severity
    _: dataclasses.KW_ONLY
    file: str  # within the repository
    field: str
    found: str
    expected: str = ""
    remedy: str = ""
    line: int | None = None
    column: int | None = None
    tensors: frozenset[tuple[str, str]] = dataclasses.field(default=frozenset(), repr=False)
    """The tensors, each with its model, that the finding explains: no later rule reports them."""

    @property
    def place(self) -> str:
        """Return the file with line and column where they are known."""
        numbers = [str(n) for n in (self.line, self.column) if n is not None]
        return ":".join([self.file, *numbers])

    @property
    def message(self) -> str:
        """Return what was found, what was expected and what to do, as one line."""
        expected = f"expected {self.expected}" if self.expected else ""
        said = "; ".join(part for part in (self.found, expected, self.remedy) if part)
        return f"{self.field}: {said}" if self.field else said

    def to_json(self) -> dict[str, Any]:
        """Return the record that --json prints."""
        record = dataclasses.asdict(self)
        del record["tensors"]
        return record


@dataclass(frozen=True, slots=True)
class RepositoryReport:
    """Everything found in a repository, by file and line."""

    folder: Path
    findings: tuple[Finding, ...]
    verification: VerificationRecord | None = None  # of the checkpoint that it serves

    @classmethod
    def of(
        cls,
        folder: Path,
        findings: Iterable[Finding],
        verification: VerificationRecord | None = None,
    ) -> RepositoryReport:
        """Return a report with its findings in reading order."""
        ordered = sorted(
            findings, key=lambda f: (f.file, f.line or 0, _ORDER[f.severity], f.field, f.found)
        )
        return cls(folder, tuple(ordered), verification)

    def count(self, severity: Severity) -> int:
        """Return how many findings are of a severity."""
        return sum(finding.severity is severity for finding in self.findings)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Return the findings that keep the repository from working."""
        return tuple(f for f in self.findings if f.severity is Severity.ERROR)

    @property
    def summary(self) -> str:
        """Return the numbers of findings in words."""
        counts = [(self.count(severity), severity.value) for severity in Severity]
        said = [f"{count} {name}{'s' * (count > 1)}" for count, name in counts if count]
        return ", ".join(said) or "nothing wrong"

    def to_json(self) -> dict[str, Any]:
        """Return the record that --json prints."""
        return {
            "repository": str(self.folder),
            **{f"{severity}s": self.count(severity) for severity in Severity},
            "findings": [finding.to_json() for finding in self.findings],
            **verification_facts(self.verification),
        }
