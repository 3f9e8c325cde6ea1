"""Who may ask: API keys from a file."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from minitron_trt.console import log
from minitron_trt.errors import BadInputError, UsageError
from minitron_trt.gateway.openai_errors import ApiError

_OTHERS_MAY_READ = 0o077


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """The keys that open the API, as digests by the names of their owners."""

    digests: Mapping[str, bytes]

    @classmethod
    def read(cls, path: Path) -> ApiKeys:
        """Read a file of keys: one a line, a name may stand before it; # begins a comment.

        UsageError when the file cannot be read, BadInputError when it has no key or a bad line.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            if path.stat().st_mode & _OTHERS_MAY_READ:
                log.warning("others can read the keys in %s; run: chmod 600 %s", path, path)
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the API keys in {path} cannot be read: {error}") from error
        digests: dict[str, bytes] = {}
        for number, line in enumerate(lines, 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            name = words[0] if len(words) == 2 else f"line{number}"
            # A key comes in a header, which carries no other characters unharmed.
            if len(words) > 2 or name in digests or not words[-1].isascii():
                raise BadInputError(
                    f"{path} line {number} is not a key; expected KEY, or NAME KEY with a name of "
                    "its own, of printable ASCII"
                )
            digests[name] = _digest(words[-1])
        if not digests:
            raise BadInputError(f"{path} has no key; expected one a line")
        return cls(digests)

    def owner(self, authorization: str | None) -> str:
        """Return whose key an Authorization header has; ApiError when it has none of them."""
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise _denied(
                "You didn't provide an API key. You need to provide your API key in an "
                "Authorization header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
            )
        digest = _digest(key.strip())
        # All are compared, each in constant time: how long it takes tells nothing of them.
        owners = [
            name for name, known in self.digests.items() if hmac.compare_digest(known, digest)
        ]
        if not owners:
            raise _denied("Incorrect API key provided.")
        return owners[0]


def _digest(key: str) -> bytes:
    # Digests have one length, without which hmac.compare_digest takes no constant time; and no key
    # is kept in memory.
    return hashlib.sha256(key.encode(errors="replace")).digest()


def _denied(message: str) -> ApiError:
    return ApiError(message, status=401, code="invalid_api_key")
