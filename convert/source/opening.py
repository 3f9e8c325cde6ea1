"""Open what `locate` returns as a model folder; a GGUF file is laid out as one for that time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from minitron_trt.console import ShowProgress
from minitron_trt.convert.gguf.file import GgufFile
from minitron_trt.convert.gguf.tensor_origins import GgufModel
from minitron_trt.convert.gguf.unpack import GgufFolder
from minitron_trt.convert.source.model_folder import ModelSource


@contextmanager
def opened(path: Path, storage: str) -> Iterator[ModelSource]:
    """Open a model folder, or a GGUF file without its weights: enough to check and plan.

    `storage` is the format that quantized tensors of a GGUF file are dequantized to.
    """
    if path.is_dir():
        yield ModelSource.open(path)
        return
    model = GgufModel.read(GgufFile.open(path))
    with tempfile.TemporaryDirectory(prefix="minitron-trt-") as name:
        GgufFolder.lay_out(model, Path(name), storage)
        yield replace(ModelSource.open(Path(name)), gguf=model)


@contextmanager
def unpacked(
    source: ModelSource, scratch: Path, storage: str, progress: ShowProgress
) -> Iterator[ModelSource]:
    """Yield a source whose weights are there: itself, or the GGUF file's unpacked in `scratch`.

    What was unpacked is removed at the end of the block.
    """
    if source.gguf is None:
        yield source
        return
    with tempfile.TemporaryDirectory(prefix=".source-", dir=scratch) as name:
        folder = GgufFolder.lay_out(source.gguf, Path(name), storage)
        with progress("unpack", folder.size_bytes) as advance:
            folder.fill(advance)
        yield replace(ModelSource.open(Path(name)), gguf=source.gguf)
