"""Folders that pass between stages: each appears whole or not at all, and carries a manifest."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, Final, TypeVar

from minitron_trt.errors import BadInputError, OutputError, UsageError
from minitron_trt.records import Bytes, check_record, read_record
from minitron_trt.version import __version__

CHECKPOINT: Final = "checkpoint"
ENGINE: Final = "engine"
REPOSITORY: Final = "repository"
HUGGING_FACE: Final = "huggingface"
"""The kinds of artifacts; a model folder without a manifest counts as the last one, too."""

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


@contextlib.contextmanager
def staged(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a scratch folder that becomes `path` only if the block succeeds.

    The scratch folder is a sibling of fixed name under a lock that dies with its process, so that
    what a killed run left is swept by the next one and two runs cannot write the same output.
    UsageError when `path` is taken; OutputError when the disk cannot take it.
    """
    check_output(path, overwrite=overwrite)
    # A link is followed, so that the scratch folder lies on the disk of the output.
    path = path.resolve()
    scratch, retired = path.parent / f".{path.name}.partial", path.parent / f".{path.name}.old"
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.mkdir(exist_ok=True)
    with _locked(scratch, path):
        _empty(scratch)
        try:
            with output_errors(path):
                yield scratch
                _sync_tree(scratch)
                # Somebody may have made the folder since.
                check_output(path, overwrite=overwrite)
                _publish(scratch, path, retired)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise


def _publish(scratch: Path, path: Path, retired: Path) -> None:
    """Give a finished folder its name, and sweep what had it before.

    Where the system can exchange two names, there is no moment at which the name has nothing.
    """
    shutil.rmtree(retired, ignore_errors=True)
    if path.exists() and _exchange(scratch, path):
        retired = scratch
    else:
        if path.exists():
            path.rename(retired)
        scratch.rename(path)
    _sync(path.parent)
    shutil.rmtree(retired, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names at once, by Linux' renameat2; False where that cannot be."""
    # Only this needs it.
    import ctypes

    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    names = (os.fsencode(one), os.fsencode(other))
    return bool(rename(_HERE, names[0], _HERE, names[1], _RENAME_EXCHANGE) == 0)


_HERE: Final = -100  # AT_FDCWD
_RENAME_EXCHANGE: Final = 2


def check_output(
    path: Path, *, overwrite: bool, kind: str | None = None, inputs: Iterable[Path] = ()
) -> None:
    """Raise UsageError when a folder is there that may not be replaced.

    That is without `overwrite`, when this tool did not write it or wrote another kind, and when
    replacing it would destroy one of the inputs, or part of one.
    """
    with output_errors(path):
        taken = path.exists()
    if not taken:
        return
    if not overwrite:
        raise UsageError(f"{path} already exists; choose another folder or pass --overwrite")
    real = path.resolve()
    for folder in inputs:
        near = folder.resolve()
        if real.is_relative_to(near) or near.is_relative_to(real):
            relation = "is" if near == real else "lies in" if near in real.parents else "holds"
            raise UsageError(
                f"{path} {relation} the input {folder}, so it is not replaced; choose another "
                "folder"
            )
    if not (path.is_dir() and _ours_or_empty(path)):
        raise UsageError(f"{path} is not something this tool wrote, so it is not replaced")
    there = _recorded_kind(path)
    if kind is not None and there not in (None, kind):
        raise UsageError(
            f"{path} is a {there}, not a {kind}, so it is not replaced; choose another folder"
        )


def _recorded_kind(folder: Path) -> str | None:
    """Return the kind of an artifact; None when its manifest is damaged, which replacing mends."""
    try:
        return kind_of(folder) if (folder / MANIFEST_NAME).exists() else None
    except BadInputError:
        return None


def copy_tree(source: Path, target: Path) -> None:
    """Copy what lies in a folder into another one.

    Unlike shutil's, the first refusal of the system ends it, and is its own error.
    """
    for path in sorted(source.rglob("*")):
        if path.is_dir():
            (target / path.relative_to(source)).mkdir(exist_ok=True)
        else:
            shutil.copy2(path, target / path.relative_to(source))


@contextlib.contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write `path` into one line.

    A refusal that names a file elsewhere is one to read it, and BadInputError.
    """
    try:
        yield
    except OSError as error:
        # Of a copy that does not fit, the system names the file that is read.
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(_existing(path)).free
            raise OutputError(
                f"no space left for {path} ({free / 1e9:.2f} GB free on its disk); nothing was kept"
            ) from error
        if error.errno in _NOT_WRITABLE and error.errno not in (errno.EFBIG, errno.EROFS):
            named = error.filename
            if isinstance(named, str) and not _belongs_to(Path(named), path):
                raise BadInputError(f"{named} cannot be read: {error.strerror}") from error
        if error.errno in _NOT_WRITABLE:
            raise OutputError(f"cannot write {path}: {error.strerror}") from error
        raise


_NOT_WRITABLE = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.EIO),
        *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
        # Where a file system makes its own names, like /proc, there is no place for others.
        errno.ENOENT,
    }
)


def _belongs_to(named: Path, path: Path) -> bool:
    """Say whether a file is an output, its scratch folder, or a folder around them."""
    named, path, real = named.absolute(), path.absolute(), path.resolve()
    if path.is_relative_to(named) or real.is_relative_to(named):
        return True
    # Scratch folders are siblings of the output.
    names = (path.name, f".{path.name}.partial", f".{path.name}.old")
    places = (folder / name for folder in (path.parent, real.parent) for name in names)
    return any(named.is_relative_to(place) for place in places)


def write_output(path: Path, text: str) -> None:
    """Write a file of text that the user named; OutputError when the disk cannot take it."""
    with output_errors(path):
        if path.exists() and not path.is_file():
            # Opening a pipe would wait for a reader.
            raise OutputError(f"cannot write {path}: it is not a regular file")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def _ours_or_empty(path: Path) -> bool:
    return (path / MANIFEST_NAME).is_file() or not any(path.iterdir())


@contextlib.contextmanager
def _locked(scratch: Path, path: Path) -> Iterator[None]:
    with output_errors(path):
        descriptor = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another minitron-trt is writing {path}; wait for it") from None
        yield
    finally:
        os.close(descriptor)


def _empty(folder: Path) -> None:
    for child in folder.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()


def _sync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            _sync(Path(root, name))
        _sync(Path(root))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
            raise BadInputError(f"{folder} is a {manifest.kind}; expected a {kind}")
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
        if not folder.is_dir():
            raise BadInputError(f"{folder} is not a folder; expected a {kind} written by this tool")
        if not path.exists():
            raise BadInputError(
                f"{folder} has no {MANIFEST_NAME}; expected a {kind} written by this tool"
            )
        try:
            record = read_record(path, dict[str, Any])
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
