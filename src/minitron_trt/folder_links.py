"""Links in folders that others made: which of them may be followed.

A file of a model folder or an artifact, and what lies beside a GGUF file, may be a link to a file
of the same folder, or to a blob of a hub cache, which is how the hub's own folders are made. Any
other would carry a file of this machine, like /etc/passwd, into an output that others get. A folder
itself, and a GGUF file, may be reached through any link: whoever runs the command named it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from minitron_trt.errors import BadInputError

_LINKS_AT_MOST: Final = 8  # a folder's, a cache's and a disk's, with room for more


def inside(folder: Path, name: str) -> Path:
    """Return the path of a folder's file; a link may lead within it or to a hub cache only."""
    path, root = folder / name, folder.resolve()
    real = path.resolve()
    if not (real.is_relative_to(root) or _is_cached(path)):
        raise BadInputError(f"{path} leads to {real}, outside the model folder; copy the file in")
    return path


def _is_cached(path: Path) -> bool:
    """Return whether a link, or one that it leads to, ends at a blob of a model in a hub cache.

    The blobs themselves may be on another disk, behind a link in their turn.
    """
    for _ in range(_LINKS_AT_MOST):
        if not path.is_symlink():
            break
        path = Path(os.path.normpath(path.parent.resolve() / path.readlink()))
        cache = path.parent.parent
        if path.parent.name == "blobs" and cache.name.startswith("models--"):
            return not path.is_symlink() and (cache / "snapshots").is_dir()
    return False
