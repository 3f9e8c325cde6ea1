"""The files of a model folder: links that lead out of it are refused, JSON must be an object."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

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


def read_json(folder: Path, name: str) -> Mapping[str, Any]:
    """Return the object in a folder's JSON file."""
    if not (folder / name).is_file():
        raise BadInputError(f"{folder} has no {name}; expected a Hugging Face model folder")
    try:
        record = json.loads(inside(folder, name).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{folder / name} is not JSON ({error})") from error
    if not isinstance(record, dict):
        raise BadInputError(f"{folder / name} is not a JSON object")
    return record


def write_json(folder: Path, name: str, record: Mapping[str, Any]) -> None:
    """Write an object to a folder's JSON file, in UTF-8 without escapes."""
    (folder / name).write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
