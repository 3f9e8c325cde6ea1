"""An artifact as an OCI image in a folder, in the layout that registries' tools read.

Its files are the image's root file system, so that an image volume of Kubernetes mounts it as the
artifact itself, and any engine of containers can pull it. Nothing in it can be run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

from minitron_trt.artifacts import MANIFEST_NAME, Manifest, is_editable
from minitron_trt.errors import BadInputError
from minitron_trt.records import read_record
from minitron_trt.registry.identity import Identity, identity_of
from minitron_trt.registry.layers import LAYER, Advance, Blob, plan_layers, write_layer

IMAGE_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
IMAGE_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
_INDEX: Final = "index.json"
_LAYOUT: Final = "oci-layout"
# What Triton runs on; an image must say something, and its files are the same for any.
_PLATFORM: Final = {"architecture": "amd64", "os": "linux"}


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A reference to a blob, as OCI's files have it."""

    mediaType: str  # noqa: N815 - OCI's own name
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def blob(self) -> Blob:
        """Return what is referred to."""
        return Blob(self.digest, self.size)

    def record(self) -> dict[str, Any]:
        """Return the descriptor as JSON has it."""
        record = {"mediaType": self.mediaType, "digest": self.digest, "size": self.size}
        return {**record, **({"annotations": dict(self.annotations)} if self.annotations else {})}


@dataclass(frozen=True, slots=True)
class ImageManifest:
    """What is read of an image's manifest."""

    config: Descriptor
    layers: Sequence[Descriptor]
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Index:
    manifests: Sequence[Descriptor]


@dataclass(frozen=True, slots=True)
class PackedImage:
    """An image in a folder; `tag` is what it is called where no tag is named."""

    folder: Path
    manifest: Descriptor
    tag: str

    @classmethod
    def open(cls, folder: Path) -> PackedImage:
        """Read an image's folder; BadInputError when it is none, or has several images."""
        try:
            index = read_record(folder / _INDEX, _Index)
        except ValueError as error:
            raise BadInputError(f"{folder / _INDEX} is no index of images ({error})") from error
        if len(index.manifests) != 1 or index.manifests[0].mediaType != IMAGE_MANIFEST:
            raise BadInputError(
                f"{folder} has {len(index.manifests)} images; expected the one that "
                "minitron-trt pack wrote"
            )
        found = index.manifests[0]
        return cls(folder, found, found.annotations.get("org.opencontainers.image.ref.name", ""))

    def read(self) -> ImageManifest:
        """Return the image's manifest; BadInputError when it is damaged."""
        path = self.blob_path(self.manifest.digest)
        if f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" != self.manifest.digest:
            raise BadInputError(f"{path} is not what its name says; pack the artifact again")
        try:
            return read_record(path, ImageManifest)
        except ValueError as error:
            raise BadInputError(f"{path} is no manifest of an image ({error})") from error

    def blob_path(self, digest: str) -> Path:
        """Return where a blob lies; BadInputError when its digest is none."""
        return _blobs(self.folder) / hex_of(digest)


def is_image(folder: Path) -> bool:
    """Say whether a folder is an image's."""
    return (folder / _LAYOUT).is_file()


def hex_of(digest: str) -> str:
    """Return the hexadecimal digits of a digest; BadInputError when it is not SHA-256's."""
    algorithm, _, digits = digest.partition(":")
    if algorithm != "sha256" or len(digits) != 64 or not set(digits) <= set("0123456789abcdef"):
        raise BadInputError(f"{digest!r} is not a digest; expected sha256: and 64 digits")
    return digits


def packed_bytes(folder: Path) -> int:
    """Return how many bytes of files packing an artifact reads."""
    return sum(_sizes(folder, identity_of(folder)).values())


def pack_image(artifact: Path, target: Path, advance: Advance) -> PackedImage:
    """Write an artifact as an image into an empty folder; each file is read once.

    BadInputError when the artifact is none of this tool's, or a file is not what its manifest says.
    """
    identity = identity_of(artifact)
    recorded = Manifest.read(artifact, identity.kind).digests.items()
    digests = {name: value for name, value in recorded if not is_editable(identity.kind, name)}
    sizes = _sizes(artifact, identity)
    blobs = _blobs(target)
    blobs.mkdir(parents=True)
    layers = []
    # A blob is named by its digest, which is known once it is written: until then it is `.layer`.
    for names in plan_layers(sizes):
        scratch = blobs / ".layer"
        blob = write_layer(artifact, names, digests, scratch, advance)
        scratch.rename(blobs / hex_of(blob.digest))
        layers.append(Descriptor(LAYER, blob.digest, blob.size, _title(names)))
    config = _write_json(
        blobs,
        IMAGE_CONFIG,
        {
            **_PLATFORM,
            "config": {"Labels": dict(identity.annotations)},
            # Layers that are not compressed have the digest of what they unpack to.
            "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
        },
    )
    manifest = _write_json(
        blobs,
        IMAGE_MANIFEST,
        {
            "schemaVersion": 2,
            "mediaType": IMAGE_MANIFEST,
            "config": config.record(),
            "layers": [layer.record() for layer in layers],
            "annotations": dict(identity.annotations),
        },
    )
    named = {"org.opencontainers.image.ref.name": identity.tag}
    listed = Descriptor(IMAGE_MANIFEST, manifest.digest, manifest.size, named)
    index = {"schemaVersion": 2, "manifests": [listed.record()]}
    (target / _INDEX).write_text(json.dumps(index, indent=2) + "\n")
    (target / _LAYOUT).write_text('{"imageLayoutVersion": "1.0.0"}\n')
    return PackedImage(target, listed, identity.tag)


def _sizes(artifact: Path, identity: Identity) -> dict[str, int]:
    """Return the artifact's files with their bytes: what manifests list, and the manifests."""
    listed = Manifest.read(artifact, identity.kind).files
    # No manifest lists another: that of an engine inside a repository.
    folders = {place for name in listed for place in PurePosixPath(name).parents}
    manifests = (str(place / MANIFEST_NAME) for place in folders)
    names = [*listed, *(name for name in manifests if (artifact / name).is_file())]
    return {name: (artifact / name).stat().st_size for name in names}


def _title(names: Sequence[str]) -> Mapping[str, str]:
    """Return a layer's name, where it is one file's."""
    return {"org.opencontainers.image.title": names[0]} if len(names) == 1 else {}


def _write_json(blobs: Path, media_type: str, record: Mapping[str, Any]) -> Descriptor:
    data = canonical(record)
    digits = hashlib.sha256(data).hexdigest()
    (blobs / digits).write_bytes(data)
    return Descriptor(media_type, f"sha256:{digits}", len(data))


def canonical(record: Mapping[str, Any]) -> bytes:
    """Return a record as bytes that are the same wherever they are made."""
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()


def _blobs(folder: Path) -> Path:
    return folder / "blobs" / "sha256"
