"""Engines by what they were built from: the same request is answered by a copy, not a build."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minitron_trt.artifacts import CONFIG_NAME, ENGINE, MANIFEST_NAME, Manifest, sha256
from minitron_trt.checkpoint import Checkpoint, rank_file
from minitron_trt.errors import BadInputError, MinitronError
from minitron_trt.outputs import copy_tree, staged

log = logging.getLogger(__name__)


def content_key(checkpoint: Checkpoint, requested: Mapping[str, Any]) -> str:
    """Return the key of a build: the checkpoint's bytes and everything that was requested."""
    names = [CONFIG_NAME, *(rank_file(r) for r in range(checkpoint.parallelism.world_size))]
    names += [path.name for path in checkpoint.tokenizer_files]
    # A checkpoint's manifest need not have digests, and sizes do not tell contents.
    parts = {name: sha256(checkpoint.folder / name) for name in names}
    # The word is part of every key: with another, no engine of earlier versions would be found.
    text = json.dumps({"files": parts, "asked": requested}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class EngineCache:
    """A folder of finished engines, each under its key and checked by digest when it is used."""

    folder: Path

    def fetch(self, key: str, output: Path, *, overwrite: bool = False) -> bool:
        """Copy the engine of a key to `output`; False when there is none that is whole."""
        entry = self.folder / key
        try:
            if not entry.is_dir():
                return False
        except OSError as error:
            log.warning("the cache cannot be used (%s: %s)", self.folder, error.strerror)
            return False
        try:
            _check(entry)
        except BadInputError as error:
            log.warning("the cached engine is damaged and is built again (%s)", error)
            shutil.rmtree(entry, ignore_errors=True)
            return False
        try:
            with staged(output, overwrite=overwrite) as scratch:
                copy_tree(entry, scratch)
        except BadInputError as error:
            # Another build that shares the cache may just replace it.
            log.warning("the cached engine is not used and it is built again (%s)", error)
            return False
        return True

    def store(self, key: str, engine: Path) -> None:
        """Copy a finished engine in, with digests; a warning says why it could not be kept.

        The engine is there all the same: a full disk, a file in the way, or another build that
        stores the same one are no reason to end in an error.
        """
        try:
            with staged(self.folder / key, overwrite=True) as scratch:
                copy_tree(engine, scratch)
                manifest = Manifest.read(scratch, ENGINE)
                (scratch / MANIFEST_NAME).unlink()
                manifest.write(scratch, digest=True)
        except (MinitronError, OSError) as error:
            log.warning("the engine is not kept in the cache (%s)", error)


def _check(entry: Path) -> None:
    manifest = Manifest.read(entry, ENGINE)
    for name, digest in manifest.digests.items():
        if sha256(entry / name) != digest:
            raise BadInputError(f"{entry / name} is not what was stored")
    # `store` records one for each file; a file without could be anything.
    if manifest.digests.keys() != manifest.files.keys():
        raise BadInputError(f"{entry} has no digests")
