"""`minitron-trt pack`, `push` and `pull`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from minitron_trt.artifacts import Manifest, kind_of
from minitron_trt.console import PATH, Console, console_options, size_text
from minitron_trt.errors import MissingExtraError, UsageError
from minitron_trt.outputs import check_output, output_errors, staged
from minitron_trt.registry.image import PackedImage, is_image, pack_image, packed_bytes

_PLACE = "HOST[:PORT]/NAME[:TAG]"
_plain_http = click.option(
    "--plain-http", is_flag=True, help="Speak HTTP, not HTTPS, as with a registry on this machine"
)


@click.command()
@click.argument("artifact", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Folder of the image")
@console_options
def pack(console: Console, artifact: Path, output: Path) -> None:
    """Write an artifact as an OCI image.

    It may be a checkpoint, an engine, a repository or a folder of convert --format hf. The image's
    files are the artifact's, so that an image volume of Kubernetes mounts it as it is; skopeo,
    podman and minitron-trt push take the folder. Equal artifacts give equal images.

    Example: minitron-trt pack repository -o image
    """
    with output_errors(output):
        # Even to look may be refused, in a folder of somebody else.
        taken = output.exists()
    if taken:
        raise UsageError(f"{output} already exists; choose another folder")
    total = packed_bytes(artifact)
    with console.progress("pack", total) as advance, staged(output) as scratch:
        image = pack_image(artifact, scratch, advance)
    record = {"image": str(output), "digest": image.manifest.digest, "tag": image.tag}
    console.result(record, f"{output}: {size_text(total)} as {image.tag}, {image.manifest.digest}")


@click.command()
@click.argument("folder", type=PATH, metavar="IMAGE|ARTIFACT")
@click.argument("place", metavar=_PLACE)
@click.option("--sign-key", type=PATH, help="Sign it by this private key on P-256, in PEM form")
@_plain_http
@console_options
def push(
    console: Console, folder: Path, place: str, sign_key: Path | None, plain_http: bool
) -> None:
    """Send an artifact to a registry.

    It may be packed already. Without a tag it gets one of its model, precision, GPU and
    TensorRT-LLM. What the registry has is not sent again. Packing takes the artifact's size in the
    folder for temporary files, TMPDIR.

    Example: minitron-trt push repository registry.example.org/models/minitron-8b
    """
    from minitron_trt.registry.image_reference import Reference

    reference = Reference.parse(place)
    if reference.version.startswith("sha256:"):
        raise UsageError(f"{place} has a digest, which follows from the content; name a tag")
    remote, signatures = _libraries(signs=sign_key is not None)
    # A key that cannot be read is said before gigabytes are packed.
    key = signatures.read_signing_key(sign_key) if sign_key else None
    with tempfile.TemporaryDirectory(prefix="minitron-trt-") as scratch:
        image = _image(console, folder, Path(scratch, "image"))
        manifest = image.read()
        total = sum(each.size for each in (*manifest.layers, manifest.config))
        at = reference if reference.version else reference.at(image.tag)
        registry = remote.RemoteRegistry(at, plain_http=plain_http)
        with console.progress("push", total) as advance:
            registry.push(image, at, advance)
        if key is not None:
            signatures.sign(registry, at, image.manifest.digest, key)
    digest = image.manifest.digest
    record = {"reference": str(at), "digest": digest, "bytes": total, "signed": key is not None}
    console.result(record, f"{at}: {size_text(total)}, {digest}{', signed' if key else ''}")


def _image(console: Console, folder: Path, scratch: Path) -> PackedImage:
    if is_image(folder):
        return PackedImage.open(folder)
    total = packed_bytes(folder)
    scratch.mkdir()
    with console.progress("pack", total) as advance, output_errors(scratch):
        return pack_image(folder, scratch, advance)


@click.command()
@click.argument("place", metavar="HOST[:PORT]/NAME:TAG|NAME@DIGEST")
@click.option("-o", "--output", type=PATH, required=True, help="Folder of the artifact")
@click.option("--overwrite", is_flag=True, help="Replace an artifact that is there")
@click.option("--verify-key", type=PATH, help="Take it only if this public key's owner signed it")
@_plain_http
@console_options
def pull(
    console: Console,
    place: str,
    output: Path,
    overwrite: bool,
    verify_key: Path | None,
    plain_http: bool,
) -> None:
    """Fetch an artifact from a registry.

    Every byte is checked against its digest.

    Example: minitron-trt pull registry.example.org/models/minitron-8b:fp8 -o repository
    """
    from minitron_trt.registry.image_reference import Reference

    reference = Reference.parse(place)
    if not reference.version:
        raise UsageError(f"{place} names no tag or digest; expected {_PLACE}")
    check_output(output, overwrite=overwrite)
    remote, signatures = _libraries(signs=verify_key is not None)
    key = signatures.read_verifying_key(verify_key) if verify_key else None
    registry = remote.RemoteRegistry(reference, plain_http=plain_http)
    manifest, digest = registry.manifest(reference)
    if key is not None:
        signatures.check_signature(registry, reference, digest, key)
    total = sum(layer.size for layer in manifest.layers)
    with (
        console.progress("pull", total) as advance,
        staged(output, overwrite=overwrite) as scratch,
    ):
        registry.pull(manifest, scratch, advance)
        kind = kind_of(scratch)
        # Digests say that these are the bytes that were pushed, not that they are an artifact.
        Manifest.read(scratch, kind)
    record = {"output": str(output), "kind": kind, "digest": digest, "verified": key is not None}
    console.result(record, f"{output}: {kind}, {size_text(total)}, {digest}")


def _libraries(*, signs: bool) -> tuple[Any, Any]:
    """Return the modules that talk to registries and that sign, which need the extra."""
    try:
        from minitron_trt.registry import remote

        if not signs:
            return remote, None
        from minitron_trt.registry import signatures
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise MissingExtraError(package, "registry", "a registry") from error
    return remote, signatures
