"""One model of a repository as it lies on the disk, whatever is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from minitron_trt.errors import BadInputError
from minitron_trt.records import read_text
from minitron_trt.triton_repo.check.field_positions import PLACEHOLDER, Outline, outline
from minitron_trt.triton_repo.check.report import Finding, Severity
from minitron_trt.triton_repo.config_messages import model_config_pb2
from minitron_trt.triton_repo.contract.model_names import (
    ENSEMBLE,
    MODELS,
    POSTPROCESSING,
    PREPROCESSING,
    TENSORRT_LLM,
    TENSORRT_LLM_BLS,
)
from minitron_trt.triton_repo.model_config import (
    CONFIG_PBTXT,
    ENSEMBLE_PLATFORM,
    ModelConfig,
    from_text,
)

TEXT_RUNTIME: Final = "llmapi"  # upstream's runtime with text in and out
# What a model of each role must have under another name, by input and by output.
_SIGNS: Final = (
    (PREPROCESSING, "QUERY", "INPUT_ID"),
    (TENSORRT_LLM, "input_lengths", "output_ids"),
    (POSTPROCESSING, "TOKENS_BATCH", "OUTPUT"),
    (TEXT_RUNTIME, "sampling_param_max_tokens", "text_output"),
    (TENSORRT_LLM_BLS, "text_input", "text_output"),
)


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model's folder, its text and, where that parses, its message."""

    folder: Path
    outline: Outline
    config: ModelConfig  # None where it does not parse
    fault: str = ""  # why it does not parse, when no placeholder and no unknown field says it
    versions: tuple[int, ...] = ()
    parameters: Mapping[str, str | None] = field(default_factory=dict)  # None: left to the template

    @classmethod
    def read(cls, folder: Path) -> ModelFolder:
        """Read a model's folder.

        FileNotFoundError, BadInputError or RecursionError when there is no text that can be read.
        """
        path = folder / CONFIG_PBTXT
        if not path.exists():
            raise FileNotFoundError(path)
        text = read_text(path)
        places = outline(text)
        config, fault = None, ""
        try:
            config = from_text(places.filled, "")
        except BadInputError as error:
            fault = str(error).removeprefix(": ")
        if places.filled != text or places.unknown:
            # What was put in their place says nothing about the model.
            config = None
        return cls(folder, places, config, fault, _versions(folder), _parameters(config))

    @property
    def name(self) -> str:
        """Return the folder's name, by which the server knows the model."""
        return self.folder.name

    @property
    def file(self) -> str:
        """Return the config's place in the repository."""
        return f"{self.name}/{CONFIG_PBTXT}"

    @property
    def version_folder(self) -> Path:
        """Return the folder of the version that is served: the highest."""
        return self.folder / str(max(self.versions, default=1))

    @property
    def role(self) -> str:
        """Return which of TensorRT-LLM's models it is, by its tensors or its name, or ""."""
        if self.config is None:
            return self.name if self.name in MODELS else ""
        if self.config.platform == ENSEMBLE_PLATFORM:
            return ENSEMBLE
        inputs, outputs = names(self.config.input), names(self.config.output)
        for role, sign, result in _SIGNS:
            if sign in inputs and result in outputs:
                return role
        return self.name if self.name in MODELS else ""

    def finding(
        self,
        severity: Severity,
        field: str,
        *,
        found: str,
        expected: str = "",
        remedy: str = "",
        tensors: Iterable[tuple[str, str]] = (),
    ) -> Finding:
        """Return a finding about a field of this model's config, with its line."""
        return Finding(
            severity,
            file=self.file,
            field=field,
            found=found,
            expected=expected,
            remedy=remedy,
            line=self.outline.line(field),
            tensors=frozenset(tensors),
        )

    def error(
        self,
        field: str,
        *,
        found: str,
        expected: str = "",
        remedy: str = "",
        tensors: Iterable[tuple[str, str]] = (),
    ) -> Finding:
        """Return what keeps the model from working."""
        return self.finding(
            Severity.ERROR,
            field,
            found=found,
            expected=expected,
            remedy=remedy,
            tensors=tensors,
        )

    def warning(
        self,
        field: str,
        *,
        found: str,
        expected: str = "",
        remedy: str = "",
        tensors: Iterable[tuple[str, str]] = (),
    ) -> Finding:
        """Return what is probably not as meant."""
        return self.finding(
            Severity.WARNING,
            field,
            found=found,
            expected=expected,
            remedy=remedy,
            tensors=tensors,
        )

    def note(self, field: str, *, found: str) -> Finding:
        """Return what could not be checked here, and why."""
        return self.finding(Severity.NOTE, field, found=found)

    def unlocated(self, field: str, value: str) -> Finding:
        """Return what to say of a parameter's path that `RepositoryFolder.locate` does not know."""
        if Path(value).is_absolute():
            return self.note(field, found=f"not checked: {value} is a path of another machine")
        return self.warning(
            field,
            found=f"{value!r} counts from the server's working directory",
            remedy="give an absolute path",
        )


@dataclass(frozen=True, slots=True)
class RepositoryFolder:
    """The models of a repository by name, and what its manifest says, if it is ours."""

    folder: Path
    models: Mapping[str, ModelFolder]
    facts: Mapping[str, Any] | None = None

    @property
    def is_ours(self) -> bool:
        """Say whether this tool wrote it."""
        return self.facts is not None

    def of_role(self, *roles: str) -> Iterator[ModelFolder]:
        """Return the models of some roles whose configs parse."""
        return (m for m in self.models.values() if m.config is not None and m.role in roles)

    def locate(self, model: ModelFolder, path: str) -> Path | None:
        """Return where a path of a parameter is on this machine; None when that cannot be known.

        Relative paths count from the version's folder in our models, from the server's working
        directory in upstream's. An absolute one may be a container's: our manifest knows where the
        repository is mounted; else it is this machine's when the folder around it is here.
        """
        try:
            place = self._locate(model, Path(path))
            if place is not None:
                place.exists()
        except (OSError, ValueError):
            # No name that a file can have: too long for the file system, or with a NUL.
            return None
        return place

    def _locate(self, model: ModelFolder, place: Path) -> Path | None:
        if not place.is_absolute():
            beside = model.version_folder / place
            return beside if beside.exists() or self.is_ours else None
        mount = (self.facts or {}).get("mount")
        if isinstance(mount, str) and place.is_relative_to(mount):
            return self.folder / place.relative_to(mount)
        # Folders like /opt and /models say nothing.
        known = place.exists() or (len(place.parent.parts) > 2 and place.parent.is_dir())
        return place if known else None


def is_there(path: Path) -> bool:
    """Say whether a path that a config names leads to something, whatever it names."""
    try:
        return path.exists()
    except (OSError, ValueError):
        # No name that a file can have: too long for the file system, or with a NUL.
        return False


def names(tensors: Iterable[Any]) -> set[str]:
    """Return the names of inputs or outputs."""
    return {tensor.name for tensor in tensors}


def type_name(value: int) -> str:
    """Return a data type as it is written in a config: a number where Triton has no such type."""
    known = model_config_pb2.DataType
    # Protobuf's text format takes any number for an enum.
    return str(known.Name(value) if value in known.values() else value)


def _versions(folder: Path) -> tuple[int, ...]:
    """Return the versions that the server sees: folders of digits, without leading zeros."""
    with os.scandir(folder) as entries:
        numbered = [e.name for e in entries if e.is_dir() and e.name.isdecimal()]
    return tuple(sorted(int(name) for name in numbered if not name.startswith("0")))


def _parameters(config: ModelConfig | None) -> dict[str, str | None]:
    if config is None:
        return {}
    return {
        key: None if PLACEHOLDER.search(value.string_value) else value.string_value
        for key, value in config.parameters.items()
    }
