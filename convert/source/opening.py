"""Open what `locate` returns as a model folder; a file is laid out as one for that time."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from minitron_trt.console import ShowProgress
from minitron_trt.convert.gguf.file import GgufFile
from minitron_trt.convert.gguf.tensor_origins import GgufModel
from minitron_trt.convert.gguf.unpack import GgufFolder
from minitron_trt.convert.nemo.archive import NemoArchive, is_nemo
from minitron_trt.convert.source.model_folder import ModelSource

if TYPE_CHECKING:
    from minitron_trt.convert.nemo.rearrange import NemoFolder

log = logging.getLogger(__name__)


@contextmanager
def opened(path: Path, storage: str, temporary: Path | None = None) -> Iterator[ModelSource]:
    """Open a model folder, or a file without what is to be unpacked: enough to check and plan.

    `storage` is the format that quantized tensors of a GGUF file are dequantized to. What is laid
    out lies in `temporary`, or where the system has temporary files.
    """
    nemo = is_nemo(path)
    if path.is_dir() and not nemo:
        yield ModelSource.open(path)
        return
    with tempfile.TemporaryDirectory(prefix="minitron-trt-", dir=temporary) as name:
        folder = Path(name)
        if not nemo:
            gguf = GgufModel.read(GgufFile.open(path))
            GgufFolder.lay_out(gguf, folder, storage)
            yield replace(ModelSource.open(folder), packed=gguf)
            return
        # Few sources are archives, and what reads them takes as long to import as all the rest.
        from minitron_trt.convert.nemo.megatron_tensors import NemoModel
        from minitron_trt.convert.nemo.rearrange import NemoFolder

        model = NemoModel.read(NemoArchive.open(path, folder))
        for warning in model.warnings:
            log.warning("%s", warning)
        in_place = NemoFolder.lay_out(model, folder).in_place
        yield replace(ModelSource.open(folder, in_place), packed=model)


@contextmanager
def unpacked(
    source: ModelSource, scratch: Path, storage: str, progress: ShowProgress
) -> Iterator[ModelSource]:
    """Yield a source whose weights are there: itself, or a file's unpacked in `scratch`.

    What was unpacked is removed at the end of the block.
    """
    if source.packed is None:
        yield source
        return
    with tempfile.TemporaryDirectory(prefix=".source-", dir=scratch) as name:
        packed, folder = source.packed, Path(name)
        if isinstance(packed, GgufModel):
            unpacking: GgufFolder | NemoFolder = GgufFolder.lay_out(packed, folder, storage)
        else:
            from minitron_trt.convert.nemo.rearrange import NemoFolder

            unpacking = NemoFolder.lay_out(packed, folder)
        with progress("unpack", unpacking.size_bytes) as advance:
            unpacking.fill(advance)
        yield replace(ModelSource.open(folder, unpacking.in_place), packed=packed)
