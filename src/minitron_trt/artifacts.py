"""Folders that pass between stages: their kinds, and the manifest that each carries."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, Final, TypeVar

from minitron_trt.errors import BadInputError, an
from minitron_trt.records import Bytes, check_record, read_record
from minitron_trt.version import __version__

CHECKPOINT: Final = "checkpoint"
ENGINE: Final = "engine"
REPOSITORY: Final = "repository"
DEPLOYMENT: Final = "deployment"
HUGGING_FACE: Final = "huggingface"
LOAD_TEST: Final = "load test"
MIGRATION: Final = "migration"
"""The kinds of artifacts; a model folder without a manifest counts as HUGGING_FACE, too."""

MANIFEST_NAME: Final = "minitron.json"
CONFIG_NAME: Final = "config.json"
"""The facts of a checkpoint, an engine and a Hugging Face folder alike."""
WEIGHTS_NAME: Final = "model.safetensors"
"""The weights of a Hugging Face folder that has them in one file."""
GENERATION_CONFIG: Final = "generation_config.json"
"""Where a Hugging Face folder says which ids begin and end a text."""
SCHEMA_VERSION: Final = 1
T = TypeVar("T")
# What people edit in a repository; everything else of it, weights, engines and code, stays as made.
_EDITED_BY_PEOPLE: Final = (
    "*/config.pbtxt",
    "*/1/model.yaml",
    "*/1/tokenizer/tokenizer_config.json",
    "*/1/tokenizer/special_tokens_map.json",
    "*/1/tokenizer/*.jinja",
)
_CODE: Final = "*.py"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an artifact is, where it came from, and the files it must have (name → bytes)."""

    kind: str
    source: Mapping[str, Any]
    facts: Mapping[str, Any]
    files: Mapping[str, int] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    tool_version: str = __version__

    def write(self, folder: Path, *, digest: bool = False) -> None:
        """Write the manifest of a finished folder, listing the files in it.

        Configuration and code of a repository have a digest in any case, with `digest` all files.
        """
        names = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST_NAME)
        paths = {str(path.relative_to(folder)): path for path in names}
        record = {
            "schema_version": SCHEMA_VERSION,
            "kind": self.kind,
            "tool_version": self.tool_version,
            "source": _in_unicode(self.source),
            **_in_unicode(self.facts),
            "files": {name: path.stat().st_size for name, path in paths.items()},
        }
        digests = {
            name: sha256(path)
            for name, path in paths.items()
            if digest or _has_digest(self.kind, name)
        }
        if digests:
            record["digests"] = digests
        (folder / MANIFEST_NAME).write_text(json.dumps(record, indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path, kind: str) -> Manifest:
        """Read the manifest of a folder and check that its files are there at their sizes.

        Files that people edit may have another. BadInputError when the folder is missing, of
        another kind or schema, or incomplete.
        """
        manifest = cls.read_unchecked(folder, kind)
        if manifest.kind != kind:
            raise BadInputError(f"{folder} is {an(manifest.kind)}; expected {an(kind)}")
        for name, size in manifest.files.items():
            file = folder / name
            actual = file_size(file)
            if actual != size and not (actual is not None and is_editable(kind, name)):
                state = "is missing" if actual is None else f"is {actual} bytes"
                raise BadInputError(
                    f"{file} {state}; the manifest says {size} bytes: make the {kind} again"
                )
        return manifest

    @classmethod
    def read_unchecked(cls, folder: Path, kind: str) -> Manifest:
        """Read the manifest of a folder, whatever its kind, and compare it with no file.

        BadInputError, which speaks of the kind that was expected, when it cannot be read.
        """
        path = folder / MANIFEST_NAME
        expected = f"{an(kind)} written by this tool"
        if not folder.is_dir():
            raise BadInputError(f"{folder} is not a folder; expected {expected}")
        if not path.exists():
            raise BadInputError(f"{folder} has no {MANIFEST_NAME}; expected {expected}")
        try:
            record = read_record(path, dict[str, Any])
            # By itself, before the rest: another schema may lack what this one has.
            version = check_record(record, _Schema).schema_version
            if version != SCHEMA_VERSION:
                raise BadInputError(
                    f"{path} has schema version {version}, this tool reads {SCHEMA_VERSION}; "
                    f"make the {kind} again or upgrade"
                )
            common = check_record(record, _ManifestRecord)
        except ValueError as error:
            raise BadInputError(f"{path} is damaged ({error}); make the {kind} again") from error
        return cls(
            kind=common.kind,
            files=common.files,
            source=common.source,
            digests=common.digests,
            tool_version=common.tool_version,
            facts={key: value for key, value in record.items() if key not in _COMMON_KEYS},
        )


def is_editable(kind: str, name: str) -> bool:
    """Say whether a file of an artifact is configuration that people edit after it was made."""
    return kind == REPOSITORY and any(fnmatchcase(name, pattern) for pattern in _EDITED_BY_PEOPLE)


def _has_digest(kind: str, name: str) -> bool:
    return is_editable(kind, name) or (kind == REPOSITORY and fnmatchcase(name, _CODE))


@dataclass(frozen=True, slots=True)
class _Schema:
    schema_version: int


@dataclass(frozen=True, slots=True)
class _ManifestRecord:
    """What the manifests of all kinds have."""

    schema_version: int
    kind: str
    files: dict[str, Bytes]
    source: dict[str, Any] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    tool_version: str = ""

    def __post_init__(self) -> None:
        for name in self.files:
            place = PurePosixPath(name)
            if not place.name or place.is_absolute() or ".." in place.parts or "\0" in name:
                raise BadInputError(f"files lists {name!r}, which is no name inside the folder")


_COMMON_KEYS: Final = frozenset(item.name for item in fields(_ManifestRecord))


def _in_unicode(value: Any) -> Any:
    """Return a value with what file names have that is no UTF-8 as escapes, which JSON can hold."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, Mapping):
        return {key: _in_unicode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_in_unicode(item) for item in value]
    return value


def facts_as(manifest: Manifest, kind: type[T], folder: Path) -> T:
    """Return the facts of a folder's manifest as a record; BadInputError when they are none."""
    try:
        return check_record(manifest.facts, kind)
    except ValueError as error:
        raise BadInputError(
            f"{folder / MANIFEST_NAME} is damaged ({error}); make the {manifest.kind} again"
        ) from error


def file_size(path: Path) -> int | None:
    """Return the bytes of a regular file; None when there is none of that name."""
    try:
        state = path.stat()
    except (OSError, ValueError):
        # ValueError: no name that a file can have.
        return None
    return state.st_size if stat.S_ISREG(state.st_mode) else None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def kind_of(folder: Path) -> str:
    """Return what a folder is: its manifest's kind, or HUGGING_FACE for a model folder."""
    path = folder / MANIFEST_NAME
    if path.exists():
        try:
            return read_record(path, _Kind).kind
        except ValueError as error:
            raise BadInputError(f"{path} is damaged ({error})") from error
    if (folder / CONFIG_NAME).is_file():
        return HUGGING_FACE
    raise BadInputError(f"{folder} is neither an artifact of this tool nor a model folder")


@dataclass(frozen=True, slots=True)
class _Kind:
    kind: str
