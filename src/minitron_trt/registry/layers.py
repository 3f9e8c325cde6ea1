"""An artifact's files as layers: tar archives whose bytes are the same wherever they are made.

A large file has a layer of its own, so that what two artifacts share is stored and fetched once;
the small ones are together in the first. Nothing is compressed, since weights do not shrink.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import IO, Final, Literal, cast

from minitron_trt.errors import BadInputError
from minitron_trt.folder_links import inside

LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
MODES: Final[Mapping[str, Literal["r|", "r|gz"]]] = MappingProxyType(
    {LAYER: "r|", f"{LAYER}+gzip": "r|gz"}
)
"""How the types of layers are read; tools that copy images may have compressed ours."""
_LARGE_BYTES: Final = 16 << 20
# Overlay file systems take 128 at most.
_LAYERS_AT_MOST: Final = 100
_READ_BYTES: Final = 1 << 20
# What a layer may unpack to, times its size: text shrinks ten times, bombs a thousand times.
_EXPANDS_AT_MOST: Final = 100
Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Blob:
    """Content that is known by the digest of its bytes."""

    digest: str
    size: int


class HashingReader(io.RawIOBase):
    """Reads from another file, and knows the digest and the number of the bytes it gave."""

    def __init__(self, file: IO[bytes], advance: Advance) -> None:
        self._file = file
        self._advance = advance
        self._hash = hashlib.sha256()
        self.size = 0

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes."""
        data = self._file.read(size)
        self._hash.update(data)
        self.size += len(data)
        self._advance(len(data))
        return data

    @property
    def digest(self) -> str:
        """Return the digest of all bytes so far, in OCI's form."""
        return f"sha256:{self._hash.hexdigest()}"


class _HashingWriter:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self.size += len(data)
        return self._file.write(data)

    @property
    def blob(self) -> Blob:
        return Blob(f"sha256:{self._hash.hexdigest()}", self.size)


def plan_layers(sizes: Mapping[str, int]) -> list[tuple[str, ...]]:
    """Return which files (name → bytes) lie together: the small ones, then each large one."""
    large = sorted(
        (name for name, size in sizes.items() if size >= _LARGE_BYTES),
        key=lambda name: -sizes[name],
    )[: _LAYERS_AT_MOST - 1]
    small = tuple(sorted(sizes.keys() - set(large)))
    return [*([small] if small else []), *((name,) for name in sorted(large))]


def write_layer(
    folder: Path,
    names: Sequence[str],
    digests: Mapping[str, str],
    target: Path,
    advance: Advance,
) -> Blob:
    """Write files of a folder as a layer; BadInputError when one is not what `digests` says."""
    with target.open("wb") as file:
        writer = _HashingWriter(file)
        # A stream is only written to.
        stream = cast(IO[bytes], writer)
        # PAX: names of any length and files beyond the 8 GiB of USTAR's header.
        with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            for place in _folders_of(names):
                entry = _entry(place, 0o755)
                entry.type = tarfile.DIRTYPE
                archive.addfile(entry)
            for name in names:
                path = inside(folder, name)
                entry = _entry(name, 0o644)
                entry.size = path.stat().st_size
                with path.open("rb") as content:
                    reader = HashingReader(content, advance)
                    archive.addfile(entry, cast(IO[bytes], reader))
                _check_digest(path, reader.digest, digests.get(name))
    return writer.blob


def _check_digest(path: Path, digest: str, expected: str | None) -> None:
    if expected is not None and digest != f"sha256:{expected}":
        raise BadInputError(
            f"{path} is not the file that the manifest lists (its SHA-256 begins with "
            f"{digest[7:19]}, expected {expected[:12]}); make the artifact again"
        )


def _folders_of(names: Sequence[str]) -> list[str]:
    places = {str(place) for name in names for place in PurePosixPath(name).parents}
    return sorted(places - {"."})


def _entry(name: str, mode: int) -> tarfile.TarInfo:
    """Return a member of nobody's, made at no time: what makes archives differ is left out."""
    entry = tarfile.TarInfo(name)
    entry.mode = mode
    return entry


def read_layer(
    stream: IO[bytes], media_type: str, blob: Blob, folder: Path, advance: Advance
) -> None:
    """Unpack a layer into a folder as it comes; BadInputError when it is not the blob named.

    Only files and folders inside are taken; links, devices and names that lead elsewhere, which an
    image of somebody else may have, are refused.
    """
    if media_type not in MODES:
        raise BadInputError(
            f"the layer {blob.digest} is of type {media_type}; expected {' or '.join(MODES)}"
        )
    reader = HashingReader(stream, advance)
    try:
        source = cast(IO[bytes], reader)
        with tarfile.open(fileobj=source, mode=MODES[media_type]) as archive:
            _unpack(archive, blob, folder)
        # One that goes on beyond its size is none, however long it would go on.
        while reader.size <= blob.size and reader.read(_READ_BYTES):
            pass
    except (tarfile.TarError, EOFError, zlib.error, ValueError, OverflowError) as error:
        # The last two are of a PAX header: a name with a NUL, a time that no file system has.
        raise BadInputError(
            f"the layer {blob.digest} is no tar archive that can be unpacked ({error}); {_EXPECTED}"
        ) from error
    if (reader.digest, reader.size) != (blob.digest, blob.size):
        raise BadInputError(
            f"the layer {blob.digest} of {blob.size} bytes came as {reader.digest} of "
            f"{reader.size} bytes; fetch it again"
        )


_EXPECTED: Final = "expected an image that minitron-trt packed"


def _unpack(archive: tarfile.TarFile, blob: Blob, folder: Path) -> None:
    room = blob.size * _EXPANDS_AT_MOST
    for member in archive:
        if not (member.isfile() or member.isdir()):
            raise BadInputError(
                f"the layer {blob.digest} has {member.name!r}, which is no file; {_EXPECTED}"
            )
        # Empty files count, too: very many would use up the disk's inodes.
        room -= member.size + tarfile.BLOCKSIZE
        if room < 0:
            raise BadInputError(
                f"the layer {blob.digest} of {blob.size} bytes unpacks to more than "
                f"{_EXPANDS_AT_MOST} times that; {_EXPECTED}"
            )
        # Python's own filter (PEP 706) takes the / off absolute names, and refuses what leads out
        # of the folder.
        archive.extract(member, folder, filter="data")
