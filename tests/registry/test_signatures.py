"""Keys and signatures that are none: refused in one line, whatever is wrong with them."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from minitron_trt.errors import UsageError
from minitron_trt.registry.signatures import _is_signed, read_signing_key, read_verifying_key

PEM = serialization.Encoding.PEM
# By openssl, on SECP112r1: a curve that the library of keys does not know.
UNKNOWN_CURVE = b"""\
-----BEGIN PUBLIC KEY-----
MDIwEAYHKoZIzj0CAQYFK4EEAAYDHgAEljLO+ttfuvp45iuW6u1XEFgAVadf+sbl
tFnRzw==
-----END PUBLIC KEY-----
"""


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(PEM, form, serialization.NoEncryption())


def public_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def test_a_key_on_another_curve_is_refused(tmp_path: Path) -> None:
    """SECP256k1 has as many bits as P-256, and cosign does not take its signatures."""
    key, path = ec.generate_private_key(ec.SECP256K1()), tmp_path / "key.pem"
    path.write_bytes(private_pem(key))
    with pytest.raises(UsageError, match="is not a key on the curve P-256"):
        read_signing_key(path)

    path.write_bytes(public_pem(key))
    with pytest.raises(UsageError, match="is not a key on the curves P-256, P-384 or P-521"):
        read_verifying_key(path)


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_a_signature_on_another_curve_of_cosigns_is_verified(
    curve: ec.EllipticCurve, tmp_path: Path
) -> None:
    """Unless it is told another digest, cosign has each of its keys sign one of SHA-256."""
    key, path = ec.generate_private_key(curve), tmp_path / "key.pub"
    path.write_bytes(public_pem(key))
    signature = base64.b64encode(key.sign(b"payload", ec.ECDSA(hashes.SHA256()))).decode()

    assert _is_signed(b"payload", signature, read_verifying_key(path))
    assert not _is_signed(b"another", signature, read_verifying_key(path))


def test_a_key_on_an_unknown_curve_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pub"
    path.write_bytes(UNKNOWN_CURVE)

    with pytest.raises(UsageError, match=r"is no public key \(Curve .* is not supported\)"):
        read_verifying_key(path)


@pytest.mark.parametrize("text", ["", "ü", "====", "QUJD"])
def test_what_is_no_signature_signs_nothing(text: str) -> None:
    """Whoever pushes an image writes the annotation that should be one."""
    key = ec.generate_private_key(ec.SECP256R1())

    assert not _is_signed(b"payload", text, key.public_key())
