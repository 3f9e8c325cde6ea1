"""`minitron-trt verify`."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import cloup

from minitron_trt.console import PATH, Console, console_options
from minitron_trt.hub_options import HUB_OPTIONS
from minitron_trt.option_types import Count
from minitron_trt.tables import Column, table_lines

if TYPE_CHECKING:
    from minitron_trt.convert.verification.comparison import Verification


@cloup.command()
@cloup.argument("checkpoint", type=PATH)
@cloup.argument("source")
@cloup.option("--text", help="Text file, JSONL or hub data set to run  [default: a text of ours]")
@cloup.option(
    "--tokens", type=Count(2), default=64, show_default=True, help="How many of its tokens to run"
)
@HUB_OPTIONS
@console_options
def verify(
    console: Console,
    checkpoint: Path,
    source: str,
    text: str | None,
    tokens: int,
    revision: str | None,
    token: str | None,
) -> None:
    """Compare a checkpoint with its source, layer by layer.

    SOURCE is a model folder, a GGUF file, a NeMo archive or a hub id. It runs in transformers, the
    checkpoint in the reference model: in float32 on the CPU, one layer at a time from the disk. A
    layer that departs by more than the precision explains is an error that names the first such
    layer and the likely cause.

    Example: minitron-trt verify checkpoint nvidia/Minitron-4B-Base
    """
    from minitron_trt.checkpoint import Checkpoint
    from minitron_trt.convert.source.locate import locate
    from minitron_trt.convert.source.opening import opened, unpacked
    from minitron_trt.convert.verification.gate import verified

    storage = Checkpoint.open(checkpoint).precision.storage
    path = locate(source, revision=revision, token=token)
    with (
        tempfile.TemporaryDirectory(prefix="minitron-trt-") as name,
        opened(path, storage, Path(name)) as packed,
        unpacked(packed, Path(name), storage, console.progress) as model,
    ):
        found = verified(checkpoint, model, console.progress, text=text, tokens=tokens)
    console.result(dataclasses.asdict(found), "\n".join(describe(checkpoint, found)))
    found.require(checkpoint)


def describe(folder: Path, found: Verification) -> Iterator[str]:
    """Yield a verification as lines of text."""
    yield from table_lines(
        [
            Column("layer", [f"{error.layer}" for error in found.layers], left=True),
            Column("error", [f"{error.relative:.2g}" for error in found.layers]),
            Column("max", [f"{error.largest:.2g}" for error in found.layers]),
            Column("mean", [f"{error.mean:.2g}" for error in found.layers]),
            Column("cosine", [f"{error.cosine:.6f}" for error in found.layers]),
        ]
    )
    logits = found.logits
    yield (
        f"logits: max {logits.largest:.2g}, mean {logits.mean:.2g}, cosine {logits.cosine:.6f}, "
        f"KL {logits.kl:.2g}, same best token {logits.same_top:.1%}"
    )
    cache = f" with a KV cache in {found.kv_cache}" if found.kv_cache else ""
    said = found.fault or f"computes what its source does, on {found.tokens} tokens"
    yield f"{folder}: {found.precision}{cache}, errors up to {found.bound:g}: {said}"
