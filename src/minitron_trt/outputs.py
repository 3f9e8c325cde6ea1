"""Outputs appear whole or not at all, and what the disk refuses is one line."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from minitron_trt.artifacts import MANIFEST_NAME, kind_of
from minitron_trt.errors import BadInputError, OutputError, UsageError, an


@contextlib.contextmanager
def staged(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a scratch folder that becomes `path` only if the block succeeds.

    The scratch folder is a sibling of fixed name under a lock that dies with its process, so that
    what a killed run left is swept by the next one and two runs cannot write the same output.
    UsageError when `path` is taken; OutputError when the disk cannot take it.
    """
    check_output(path, overwrite=overwrite)
    # A link is followed, so that the scratch folder lies on the disk of the output.
    path = _resolved(path)
    scratch, retired = path.parent / f".{path.name}.partial", path.parent / f".{path.name}.old"
    with output_errors(path):
        _make_folders(path.parent)
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
    # A rename is on the disk only when the folder around it is.
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
    real = _resolved(path)
    with output_errors(path):
        # Where it will be written, which may be there while `path` is not: `new/..` without `new`.
        taken = real.exists()
    if not taken:
        return
    if not overwrite:
        raise UsageError(f"{path} already exists; choose another folder or pass --overwrite")
    for folder in inputs:
        near = folder.resolve()
        if real.is_relative_to(near) or near.is_relative_to(real):
            relation = "is" if near == real else "lies in" if near in real.parents else "holds"
            raise UsageError(
                f"{path} {relation} the input {folder}, so it is not replaced; choose another "
                "folder"
            )
    if not (real.is_dir() and _ours_or_empty(real)):
        raise UsageError(f"{path} is not something this tool wrote, so it is not replaced")
    there = _recorded_kind(real)
    if kind is not None and there not in (None, kind):
        raise UsageError(
            f"{path} is {an(there)}, not {an(kind)}, so it is not replaced; choose another folder"
        )


def _resolved(path: Path) -> Path:
    """Return where an output's links lead; OutputError where they lead in a circle."""
    try:
        path.stat()
    except OSError as error:
        # Of a circle resolve() makes a RuntimeError before Python 3.13, and nothing since.
        if error.errno == errno.ELOOP:
            raise OutputError(f"cannot write {path}: its links lead in a circle") from error
    return path.resolve()


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
    # Unlike resolve(), realpath takes links that lead in a circle.
    named, path, real = named.absolute(), path.absolute(), Path(os.path.realpath(path))
    if path.is_relative_to(named) or real.is_relative_to(named):
        return True
    # Scratch folders are siblings of the output.
    names = (path.name, f".{path.name}.partial", f".{path.name}.old")
    places = (folder / name for folder in (path.parent, real.parent) for name in names)
    return any(named.is_relative_to(place) for place in places)


def write_output(path: Path, content: str | bytes) -> None:
    """Write a file that the user named; OutputError when the disk cannot take it.

    Text is UTF-8, but for paths in it that are none: those keep their bytes.
    """
    with output_errors(path):
        if path.exists() and not path.is_file():
            # Opening a pipe would wait for a reader.
            raise OutputError(f"cannot write {path}: it is not a regular file")
        _make_folders(path.parent)
        if isinstance(content, str):
            content = content.encode(errors="surrogateescape")
        path.write_bytes(content)


def make_folder(path: Path) -> None:
    """Make a folder that the user named, and those around it; OutputError where that cannot be."""
    with output_errors(path):
        _make_folders(path)


def _make_folders(path: Path) -> None:
    # Path.mkdir calls itself for each that is missing: there may be more than Python has calls.
    missing = itertools.takewhile(lambda folder: not folder.exists(), path.parents)
    for folder in (*reversed(tuple(missing)), path):
        folder.mkdir(exist_ok=True)


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


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
