"""Fetch a repository into a volume and check every file of it, before a server starts.

    python3 fetch_repository.py URL LIST FOLDER

LIST is of the deployment, as sha256sum writes one, so that whoever keeps the files cannot change
them unseen. It runs with nothing but Python's own library. A file that is there already is checked
and kept; one that does not come, or is another, ends it with 1.
"""

from __future__ import annotations

import hashlib
import http.client
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

_BLOCK = 2**20
_TRIES = 5
_TIMEOUT_S = 60


def main(url: str, listed: Path, folder: Path) -> int:
    """Fetch and check; return the exit code."""
    for line in listed.read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        try:
            _bring(f"{url.rstrip('/')}/{urllib.parse.quote(name)}", folder / name, digest)
        except (OSError, ValueError, http.client.HTTPException) as error:
            print(f"error: {name}: {error}", file=sys.stderr)  # noqa: T201 - an init container
            return 1
    return 0


def _bring(url: str, path: Path, digest: str) -> None:
    if path.is_file() and _digest(path) == digest:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    for left in reversed(range(_TRIES)):
        try:
            with (
                urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer,
                partial.open("wb") as file,
            ):
                while block := answer.read(_BLOCK):
                    file.write(block)
                # A connection that breaks off looks like the end of the file.
                if answer.length:
                    raise ConnectionError(f"{url} ended {answer.length} bytes early")
            break
        except urllib.error.HTTPError as error:
            # Nothing there: asking again changes nothing.
            if error.code < 500 or not left:
                raise
        except (OSError, http.client.HTTPException):
            if not left:
                raise
        time.sleep(1)
    actual = _digest(partial)
    if actual != digest:
        partial.unlink()
        raise ValueError(f"{url} has sha256 {actual}; expected {digest}")
    partial.rename(path)


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
