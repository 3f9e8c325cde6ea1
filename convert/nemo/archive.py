"""A NeMo archive as byte ranges by name: a tar, or the folder that it unpacks to.

No member is ever unpacked under a name of its own, so none can land anywhere: its name is a key,
and its bytes are read where they lie in the tar. A compressed tar is decompressed to one scratch
file first.
"""

from __future__ import annotations

import gzip
import logging
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from minitron_trt.convert.source.weight_files import has_weights
from minitron_trt.errors import BadInputError, OutputError, UnsupportedError
from minitron_trt.folder_links import inside
from minitron_trt.tensorfile import LFS_POINTER

log = logging.getLogger(__name__)

NEMO_SUFFIX: Final = ".nemo"
CONFIG_NAME: Final = "model_config.yaml"
SCRATCH_TAR: Final = "decompressed.tar"
_GZIP_MAGIC: Final = b"\x1f\x8b"
_TAR_MAGIC_AT: Final = 257
_MEMBERS_AT_MOST: Final = 1_000_000
# Of a file that is read whole: a config, a tokenizer, the pickle of a state dict.
_TEXT_AT_MOST: Final = 64 << 20
_CHUNK_BYTES: Final = 1 << 20
_ROOM_BYTES: Final = 256 << 20  # that a decompressed archive leaves to others


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes [offset, offset + size) of a file, which a message calls by `name`."""

    path: Path
    name: str
    offset: int
    size: int

    def part(self, offset: int, size: int) -> ByteRange:
        """Return a range within this one; BadInputError where it ends beyond."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise BadInputError(
                f"{self.name} is {self.size} bytes but {size} at {offset} are wanted of it; "
                "download the archive again"
            )
        return ByteRange(self.path, self.name, self.offset + offset, size)

    def read(self, at_most: int = _TEXT_AT_MOST) -> bytes:
        """Return the bytes; BadInputError when they are more than a small file's or are gone."""
        if self.size > at_most:
            raise BadInputError(
                f"{self.name} is {self.size} bytes; expected at most {at_most} of such a file"
            )
        with self.path.open("rb") as file:
            data = os.pread(file.fileno(), self.size, self.offset)
        if len(data) < self.size:
            raise BadInputError(f"{self.path} became shorter; convert again")
        return data


@dataclass(frozen=True, slots=True)
class NemoArchive:
    """The files of an archive by name, in whatever they lie."""

    path: Path  # what the user named
    members: Mapping[str, ByteRange]

    @classmethod
    def open(cls, path: Path, scratch: Path) -> NemoArchive:
        """Read an archive's directory; only a compressed one is written to `scratch`.

        BadInputError when it is damaged, or holds what an archive of NeMo's does not.
        """
        if path.is_dir():
            return cls(path, dict(_files(path)))
        tar = path
        if is_compressed(path):
            tar = scratch / SCRATCH_TAR
            _decompress(path, tar)
        return cls(path, dict(_members(tar, path)))

    def under(self, folder: str) -> dict[str, ByteRange]:
        """Return the files below a folder, by their names within it."""
        start = f"{folder}/"
        return {
            name.removeprefix(start): member
            for name, member in self.members.items()
            if name.startswith(start)
        }


def is_compressed(path: Path) -> bool:
    """Return whether a file begins as gzip's do."""
    return path.is_file() and _start(path)[:2] == _GZIP_MAGIC


def is_nemo(path: Path) -> bool:
    """Return whether a path is a NeMo archive: a file by its name or start, or what one unpacks to.

    A Hugging Face folder that holds a config of NeMo's as well is none.
    """
    if path.is_dir():
        nemo_2 = (path / "context").is_dir() and (path / "weights").is_dir()
        return ((path / CONFIG_NAME).is_file() or nemo_2) and not has_weights(path)
    return path.is_file() and (
        path.suffix == NEMO_SUFFIX
        or is_compressed(path)
        or _start(path)[_TAR_MAGIC_AT:].startswith(b"ustar")
    )


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(512)


def _files(folder: Path) -> Iterator[tuple[str, ByteRange]]:
    for root, folders, names in os.walk(folder):
        # A link to a folder would not be walked into, and what it holds be missed.
        for name in sorted([*names, *(one for one in folders if Path(root, one).is_symlink())]):
            path = Path(root, name)
            relative = path.relative_to(folder).as_posix()
            # Links that lead nowhere, folders behind links and pipes are none.
            if not inside(folder, relative).is_file():
                raise BadInputError(f"{path} is not a regular file; expected an unpacked archive")
            yield relative, ByteRange(path, relative, 0, path.stat().st_size)


def _members(tar: Path, named: Path) -> Iterator[tuple[str, ByteRange]]:
    size, seen = tar.stat().st_size, set[str]()
    _check_start(tar, named)
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                if member.isdir():
                    continue
                name = _plain_name(member, named)
                if name in seen:
                    raise BadInputError(f"{named} holds {name!r} twice; pack it again")
                seen.add(name)
                if len(seen) > _MEMBERS_AT_MOST:
                    raise BadInputError(
                        f"{named} holds more than {_MEMBERS_AT_MOST} files; expected a NeMo archive"
                    )
                if member.offset_data + member.size > size:
                    raise BadInputError(
                        f"{named} ends within {name!r}; it is truncated: download it again"
                    )
                yield name, ByteRange(tar, name, member.offset_data, member.size)
            # A tar ends with empty blocks; one that was cut off between two files does not.
            if archive.offset + tarfile.BLOCKSIZE > size:
                raise BadInputError(f"{named} is truncated between two files; download it again")
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise BadInputError(f"{named} is truncated or no tar ({error}); download it again") from (
            error
        )


def _check_start(tar: Path, named: Path) -> None:
    start = _start(tar)
    if start.startswith(LFS_POINTER):
        raise BadInputError(f"{named} is a git-LFS pointer, not an archive; run: git lfs pull")
    if start[:4] == b"PK\x03\x04":
        raise UnsupportedError(f"{named} is a zip file; expected the tar that NeMo writes")


def _plain_name(member: tarfile.TarInfo, named: Path) -> str:
    """Return a member's name within the archive; BadInputError for what NeMo never packs."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise BadInputError(
            f"{named} holds {member.name!r}, which leads out of the archive; do not trust it"
        )
    # The bytes of a sparse member are no one range of the tar.
    if not member.isreg() or member.issparse():
        raise BadInputError(
            f"{named} holds {member.name!r}, which is a link or a device; expected files only"
        )
    return path.as_posix()


def _decompress(path: Path, target: Path) -> None:
    """Write what a gzip file holds."""
    log.warning("%s is compressed: it is decompressed to %s first", path, target.parent)
    try:
        with (
            path.open("rb") as source,
            # Not tarfile's own reader of gzip: members would have no place in a file, and each
            # would be reached through all before it.
            gzip.GzipFile(fileobj=source) as stream,
            target.open("wb") as file,
        ):
            while data := stream.read(_CHUNK_BYTES):
                _check_room(path, target.parent)
                file.write(data)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BadInputError(
            f"{path} is truncated or damaged gzip ({error}); download it again"
        ) from error


def _check_room(path: Path, folder: Path) -> None:
    if shutil.disk_usage(folder).free < _ROOM_BYTES:
        raise OutputError(
            f"{path} decompresses to more than the disk of {folder} has free; choose another with "
            "TMPDIR, or gunzip it yourself"
        )
