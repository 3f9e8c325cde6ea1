"""A certificate of this machine, for servers that tests ask over TLS."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Return the files of a certificate for 127.0.0.1 and of its key; skip without openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("TLS IS NOT TESTED: there is no openssl to make a certificate with")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1")
    files = ("-days", "2", "-out", str(certificate), "-keyout", str(key))
    argv = ["openssl", "req", "-x509", *curve, *names, *files]
    subprocess.run(argv, check=True, capture_output=True)
    return certificate, key
