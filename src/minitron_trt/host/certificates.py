"""Certificates and keys of TLS in PEM files: a key with a passphrase has nobody to give it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from minitron_trt.errors import UsageError

if TYPE_CHECKING:
    import ssl


def load_certificate(context: ssl.SSLContext, *, certificate: Path, key: Path) -> None:
    """Load a certificate with its key; UsageError when they are none, or the key is encrypted."""
    # Whoever has a context has it loaded.
    import ssl

    def refuse() -> str:
        # Called for a passphrase. OpenSSL itself would ask the terminal, and wait.
        raise encrypted_key(key)

    try:
        context.load_cert_chain(certificate, key, password=refuse)
    # Files that cannot be read, and an SSLError, which is an OSError, too.
    except OSError as error:
        # OpenSSL has no reason for what is not in PEM form.
        reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
        detail = f" ({reason})" if reason else ""
        raise UsageError(
            f"{certificate} with the key {key} cannot be used{detail}; expected a certificate and "
            "its own key, in PEM form"
        ) from error


def encrypted_key(key: Path) -> UsageError:
    """Return the error of a key that needs a passphrase."""
    return UsageError(
        f"the key {key} is encrypted; expected one without a passphrase, that its owner alone can "
        "read: openssl pkey -in KEY -out PLAIN_KEY"
    )
