"""Keys and signatures that are none: refused in one line, whatever is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
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


@pytest.mark.parametrize("curve", [ec.SECP256K1(), ec.SECP384R1()], ids=lambda curve: curve.name)
def test_a_key_on_another_curve_is_refused(curve: ec.EllipticCurve, tmp_path: Path) -> None:
    """SECP256k1 has as many bits as P-256, and cosign does not take its signatures."""
    key, path = ec.generate_private_key(curve), tmp_path / "key.pem"
    form = serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(PEM, form, serialization.NoEncryption()))
    with pytest.raises(UsageError, match="is not a key on the curve P-256"):
        read_signing_key(path)

    shape = serialization.PublicFormat.SubjectPublicKeyInfo
    path.write_bytes(key.public_key().public_bytes(PEM, shape))
    with pytest.raises(UsageError, match="is not a key on the curve P-256"):
        read_verifying_key(path)


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
