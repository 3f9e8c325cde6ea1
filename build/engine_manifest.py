"""What every engine's folder gets from its checkpoint, whichever compiler wrote it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minitron_trt.artifacts import ENGINE, MANIFEST_NAME, Manifest, sha256
from minitron_trt.checkpoint import Checkpoint


def checkpoint_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what an engine's manifest repeats of its checkpoint's."""
    return {
        "spec": checkpoint.spec.to_json(),
        "tokens": asdict(checkpoint.tokens),
        "precision": checkpoint.precision.name,
    }


def write_manifest(folder: Path, checkpoint: Checkpoint, facts: Mapping[str, Any]) -> None:
    """Copy the tokenizer to a finished engine and write its manifest, which must come last."""
    for path in checkpoint.tokenizer_files:
        shutil.copyfile(path, folder / path.name)
    source = {
        "checkpoint": str(checkpoint.folder.resolve()),
        "manifest_sha256": sha256(checkpoint.folder / MANIFEST_NAME),
        "source": checkpoint.manifest.source,
    }
    Manifest(ENGINE, source, facts).write(folder)
