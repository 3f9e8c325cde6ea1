"""Signatures of images, in the form that cosign, podman, skopeo and admission controllers verify.

A signature is an image of its own, at the tag sha256-DIGITS.sig beside the one that it signs. It
says the place and the digest of the manifest, which in its turn has the digests of all files.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from minitron_trt.console import no_progress
from minitron_trt.errors import BadInputError, UsageError
from minitron_trt.registry.image import IMAGE_CONFIG, IMAGE_MANIFEST, canonical, hex_of
from minitron_trt.registry.image_reference import Reference
from minitron_trt.registry.layers import Blob
from minitron_trt.registry.remote import RemoteRegistry

_PAYLOAD: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
_SIGNATURE: Final = "dev.cosignproject.cosign/signature"
_TYPE: Final = "cosign container image signature"
_PASSWORD: Final = "COSIGN_PASSWORD"
_ALGORITHM: Final = ec.ECDSA(hashes.SHA256())
_CURVE: Final = ec.SECP256R1
"""P-256, the curve of the keys that cosign makes."""
# Of keys made elsewhere cosign takes these. SECP256k1 has as many bits as P-256, so that a size
# would not tell.
_VERIFIED_CURVES: Final = (_CURVE, ec.SECP384R1, ec.SECP521R1)
_MAKE: Final = "openssl ecparam -name prime256v1 -genkey -noout -out key.pem"


def read_signing_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a private key on the curve P-256 in PEM form; UsageError when it is none.

    The password of an encrypted one is in the variable COSIGN_PASSWORD.
    """
    password = os.environ.get(_PASSWORD)
    try:
        key = serialization.load_pem_private_key(
            # An empty variable is no password: a key that needs none refuses any.
            path.read_bytes(),
            password.encode() if password else None,
        )
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{path} is no key to sign with ({error}); make one: {_MAKE}") from error
    if not (isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, _CURVE)):
        raise UsageError(f"{path} is not a key on the curve P-256; make one: {_MAKE}")
    return key


def read_verifying_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Read a public key on P-256, P-384 or P-521 in PEM form; UsageError when it is none."""
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(
            f"{path} is no public key ({error}); make one of yours: "
            "openssl ec -in key.pem -pubout -out key.pub"
        ) from error
    if not (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, _VERIFIED_CURVES)):
        raise UsageError(f"{path} is not a key on the curves P-256, P-384 or P-521")
    return key


def sign(
    registry: RemoteRegistry, place: Reference, digest: str, key: ec.EllipticCurvePrivateKey
) -> Reference:
    """Push a signature of a manifest; return where it lies."""
    payload = canonical(
        {
            "critical": {
                "identity": {"docker-reference": place.repository},
                "image": {"docker-manifest-digest": digest},
                "type": _TYPE,
            },
            # Written though there is nothing, as cosign does.
            "optional": None,
        }
    )
    signature = base64.b64encode(key.sign(payload, _ALGORITHM)).decode()
    # An image needs a config; cosign's is one of no platform, with nothing to run.
    config = canonical(
        {
            "architecture": "",
            "os": "",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [_digest(payload)]},
        }
    )
    layer = _descriptor(_PAYLOAD, payload) | {"annotations": {_SIGNATURE: signature}}
    manifest = {
        "schemaVersion": 2,
        "mediaType": IMAGE_MANIFEST,
        "config": _descriptor(IMAGE_CONFIG, config),
        "layers": [layer],
    }
    with tempfile.TemporaryDirectory(prefix="minitron-trt-") as scratch:
        for data in (payload, config):
            path = Path(scratch, "blob")
            path.write_bytes(data)
            registry.push_blob(path, Blob(_digest(data), len(data)), no_progress)
    at = _place_of(place, digest)
    registry.push_manifest(canonical(manifest), at)
    return at


def check_signature(
    registry: RemoteRegistry, place: Reference, digest: str, key: ec.EllipticCurvePublicKey
) -> None:
    """Look for a signature of a manifest by a key; BadInputError when there is none."""
    at = _place_of(place, digest)
    try:
        manifest, _ = registry.manifest(at)
    except BadInputError as error:
        raise BadInputError(
            f"{place} has no signature ({at} is not there or is none); push it with --sign-key"
        ) from error
    # cosign keeps all signatures of an image in one place, each a layer.
    for layer in manifest.layers:
        payload = registry.small_blob(layer.blob)
        signature = layer.annotations.get(_SIGNATURE, "")
        if _is_signed(payload, signature, key) and _says(payload, place, digest):
            return
    raise BadInputError(f"{place} is not signed by this key; ask whoever pushed it")


def _is_signed(payload: bytes, signature: str, key: ec.EllipticCurvePublicKey) -> bool:
    try:
        key.verify(base64.b64decode(signature, validate=True), payload, _ALGORITHM)
    except (InvalidSignature, ValueError):
        # ValueError: the annotation is no base64.
        return False
    return True


def _says(payload: bytes, place: Reference, digest: str) -> bool:
    """Say whether a payload speaks of this manifest in this place: a signature can be copied."""
    try:
        critical: Any = json.loads(payload)["critical"]
        return bool(
            critical["type"] == _TYPE
            and critical["image"]["docker-manifest-digest"] == digest
            and critical["identity"]["docker-reference"] == place.repository
        )
    except (ValueError, KeyError, TypeError):
        return False


def _place_of(place: Reference, digest: str) -> Reference:
    return place.at(f"sha256-{hex_of(digest)}.sig")


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _descriptor(media_type: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(data), "size": len(data)}
