"""Certificates and keys of TLS in PEM files: a key with a passphrase has nobody to give it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from minitron_trt.errors import UsageError

if TYPE_CHECKING:
    import ssl


def load_certificate(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Load a certificate with its key; UsageError for one that is encrypted, else ssl's errors."""

    def refuse() -> str:
        # Called for a passphrase. OpenSSL itself would ask the terminal, and wait.
        raise encrypted_key(key)

    context.load_cert_chain(certificate, key, password=refuse)


def encrypted_key(key: Path) -> UsageError:
    """Return the error of a key that needs a passphrase."""
    return UsageError(
        f"the key {key} is encrypted; expected one without a passphrase, that its owner alone can "
        "read: openssl pkey -in KEY -out PLAIN_KEY"
    )
